"""Another program that runs the same model, in a process and a Python of its own.

It loads once, and then runs whatever it is asked, so that its runs and ours can take turns. A
request and its answer are a line of JSON each, over stdin and stdout: see `programs/__main__.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from starcoder import formats
from starcoder.bench.runner import Task
from starcoder.errors import InputError
from starcoder.model.checkpoint import Checkpoint, Format

__all__ = ["RIVALS", "Rival"]

_PROGRAMS = Path(__file__).with_name("programs")
_PATIENCE = 5.0  # seconds for a program to end that has nothing more to answer
RIVALS = {  # what the user calls it: the module of ours, and what to install
    "llama-cpp": ("on_llama_cpp", "llama-cpp-python"),
    "ctranslate2": ("on_ctranslate2", "ctranslate2"),
}


class Rival:
    """A running program; to be used in a `with` statement.

    Args:
        kind: one of RIVALS.
        python: the Python that has it.

    Raises:
        InputError: no such program, no such Python, or the package is not installed there.
    """

    def __init__(self, kind: str, python: str) -> None:
        if kind not in RIVALS:
            raise InputError("program", repr(kind[:40]), " or ".join(RIVALS))
        module, package = RIVALS[kind]
        self._where, self._needs_file = kind, kind == "llama-cpp"
        self._folder = TemporaryDirectory(prefix="starcoder-bench-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "stderr")
        own = "OPENBLAS_NUM_THREADS"  # set by our command for numpy; a rival may multiply with it
        env = {name: value for name, value in os.environ.items() if name != own}
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, str(_PROGRAMS), module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    text=True,
                )
        except OSError as error:
            self._folder.cleanup()
            found = f"{python}: {error.strerror}"
            raise InputError("--python", found, "a Python that can run") from None
        try:
            hello = self._receive()
            if "missing" in hello:
                found = f"no package {hello['missing']} for {python}"
                advice = f"{python} -m pip install {package}, or name a Python that has it with"
                raise InputError(self._where, found, package, f"{advice} --python")
        except BaseException:
            self.close()
            raise
        self._program, self._note = str(hello["program"]), ""

    def __enter__(self) -> Rival:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def load(self, checkpoint: Checkpoint, task: Task, n_threads: int) -> None:
        """Loads the model, from its own file or one written for it, and warms up.

        Raises:
            InputError: the program cannot run this model or this task.
            WriteError: no room for the file.
        """
        path = Path(checkpoint.source)
        if self._needs_file and checkpoint.format is not Format.GGUF:
            path = Path(self._folder.name, "model.gguf")
            formats.write(path, checkpoint)
        c = checkpoint.config
        shape = {key: getattr(c, key) for key in ("dim", "hidden_dim", "n_layers", "n_heads")}
        shape |= {"n_kv_heads": c.n_kv_heads, "n_ctx": c.n_ctx, "n_vocab": c.n_vocab}
        shape |= {"architecture": c.architecture}
        settings = {"path": str(path), "folder": self._folder.name, "n_threads": n_threads}
        self._note = str(self._ask("load", **asdict(task), **shape, **settings)["note"])

    @property
    def name(self) -> str:
        """The program, its version and its settings."""
        return f"{self._program}, {self._note}"

    def prompt(self) -> float:
        """Seconds for the task's prompt."""
        return float(self._ask("prompt")["seconds"])

    def decode(self) -> float:
        """Seconds for the task's tokens one by one."""
        return float(self._ask("decode")["seconds"])

    def close(self) -> None:
        """Ends the program and forgets its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _ask(self, verb: str, **details: object) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": verb, **details}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the answer will say so
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise InputError(self._where, str(answer["error"])[:300], "a program that runs")
        return answer

    def _last_words(self) -> str:
        # Its stdout closes a little before it says why.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"it ended{': ' if last else ''}{last}"
