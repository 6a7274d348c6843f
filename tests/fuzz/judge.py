"""What becomes of a damaged model: it works, is refused in one of our errors, or shows a bug.

It is read, shown, checked, built, tokenized for, run for a prompt and a step, converted and read
back, in a child of its own whose memory and time are measured. A traceback, a crash, a second of
work or too much memory is a bug.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starcoder import formats
from starcoder.cli.inspect import inspect
from starcoder.convert import mix, quantize
from starcoder.core import ops
from starcoder.engine import Engine
from starcoder.errors import FormatError, StarcoderError
from starcoder.model import models
from starcoder.model.checkpoint import Checkpoint
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import LogitsError
from starcoder.text.tokenizer import Tokenizer
from tests.fuzz.mutants import Files

MAX_SECONDS = 1.0  # of CPU, for each thing that is done
MAX_READ_KIB = 32 << 10  # beyond what the process has, and three times the file
MAX_KIB = 64 << 10  # for all that follows reading: the model, its cache, a converted copy
# More of both where a sanitizer keeps what was freed.
MORE_KIB = int(os.environ.get("STARCODER_FUZZ_MORE_MIB", "0")) << 10
TEXT = "def add(first, second2):\n    # größer <fim_prefix> 2048\n\treturn 🦀"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one model: `kind` is "works", "refused" or what is wrong."""

    kind: str
    stage: str = ""
    message: str = ""
    seconds: float = 0.0
    read_kib: int = 0  # at its peak while reading, beyond what the process had
    kib: int = 0  # at its peak in all

    @property
    def is_bug(self) -> bool:
        return self.kind not in ("works", "refused")


# ------------------------------------------------------------------------------------------------
# In the child


def exercise(path: Path, enter: Callable[[str], None]) -> None:
    """Everything that can be done with a model file."""
    enter("read")
    checkpoint = formats.read(path)
    assert all(n.isprintable() and len(n) < 1000 for n in checkpoint.notices), "unclear notice"
    enter("inspect")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        inspect(str(path), as_json=True, check=True)
    for legacy, kind, size in (
        (False, "q8_0", None),
        (False, None, None),
        (False, None, 50_000),
        (True, "f16", None),
    ):
        enter("convert")
        with contextlib.suppress(StarcoderError):
            convert(checkpoint, path.parent / "out", legacy, kind, size)
    enter("tokenize")
    tokenizer = Tokenizer(checkpoint.vocab)
    tokens = tokenizer.encode(TEXT)
    tokenizer.decode(tokens)
    enter("build")
    net = models.build(checkpoint)
    enter("run")
    n_ctx = min(checkpoint.config.n_ctx, 32)
    engine = Engine(net, n_ctx=n_ctx, n_batch=8, n_parallel=1)
    engine.submit(tokens[: n_ctx - 1] or [0], GenerationOptions(max_tokens=2))
    while not engine.is_idle:
        for event in engine.step():
            if event.error is not None:
                raise event.error


def convert(
    checkpoint: Checkpoint, out: Path, legacy: bool, kind: str | None, size: int | None
) -> None:
    """Write the model as another; what was written can be read."""
    choice = quantize.Choice(mix=mix.find_mix(kind) if kind else None, legacy=legacy)
    types, _ = quantize.plan(checkpoint, choice)
    weights = quantize.quantize(checkpoint, types, legacy=legacy)
    formats.write(out, checkpoint, weights, legacy=legacy, force=True, max_part_bytes=size)
    try:
        formats.read(
            out if size is None else formats.part_paths(out, checkpoint, weights, size)[-1]
        )
    except FormatError as error:
        raise AssertionError(f"what was written cannot be read: {error}") from error


def _child(path: Path, pipe: int) -> None:
    signal.alarm(20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmSize") + (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit << 10, limit << 10))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, stage, read_kib = _status("VmRSS"), "", 0
    start, seconds = time.process_time(), 0.0

    def enter(name: str) -> None:
        nonlocal stage, read_kib, start, seconds
        seconds, start = max(seconds, time.process_time() - start), time.process_time()
        if stage == "read":
            read_kib = _status("VmHWM") - before
        stage = name

    ops.set_n_threads(1)
    logging.getLogger("starcoder").addHandler(logging.NullHandler())
    warnings.simplefilter("error")
    logging.disable()
    kind, message = "works", ""
    try:
        exercise(path, enter)
    except (StarcoderError, LogitsError) as error:
        kind, message = "refused", str(error)
        if not message.isprintable() or len(message) > 2000:
            kind = "unclear message"
    except BaseException as error:
        kind, message = type(error).__name__, str(error)
    peak = _status("VmHWM") - before
    enter(stage)
    line = json.dumps([kind, stage, message[:300], seconds, read_kib, peak])
    os.write(pipe, line.encode("utf-8", "replace"))


def _status(key: str) -> int:
    """KiB of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise LookupError(key)


# ------------------------------------------------------------------------------------------------
# In the parent


def attempt(files: Files) -> Outcome:
    """What becomes of a model, found out in a child process."""
    with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
        path = Path(folder, "m")
        is_folder = len(files) > 1 or _are_parts(files)
        if is_folder:
            path.mkdir()
        for name, raw in files.items():
            (path / name if is_folder else path).write_bytes(raw)
        if _are_parts(files):
            path /= next(iter(files))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                _child(path, writer)
                code = 0
            os._exit(code)
        os.close(writer)
        with open(reader, "rb") as answer:
            line = answer.read()
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Outcome("hang" if number == signal.SIGALRM else f"signal {number}")
    return _judge(Outcome(*json.loads(line)), sum(map(len, files.values()))) if line else _LOST


def _are_parts(files: Files) -> bool:
    """Whether any of these files stands for the model."""
    return all(name.endswith(".gguf") for name in files)


_LOST = Outcome("no answer")


def _judge(outcome: Outcome, n_bytes: int) -> Outcome:
    slow = outcome.seconds > MAX_SECONDS
    kib = 3 * n_bytes // 1024
    kib += MORE_KIB
    large = outcome.read_kib > MAX_READ_KIB + kib or outcome.kib > MAX_KIB + kib
    if outcome.is_bug or not (slow or large):
        return outcome
    kind = "slow" if slow else "memory"
    return Outcome(kind, *(getattr(outcome, name) for name in Outcome.__slots__[1:]))


def _scratch() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
