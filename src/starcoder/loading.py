"""Loading: from the name of a model to what answers prompts, an engine and a tokenizer.

What a name stands for is for `hub` to say, what is in its files for `formats`. Whether there is
memory is asked before the weights are read.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from starcoder import arguments, formats, hub
from starcoder.convert import memory
from starcoder.core import machine, ops
from starcoder.engine import Engine
from starcoder.errors import MemoryLimitError
from starcoder.facts import Facts
from starcoder.model import models
from starcoder.text.tokenizer import Tokenizer

__all__ = ["Loaded", "load", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to answer."""

    engine: Engine
    tokenizer: Tokenizer
    facts: Facts


def load(
    model: str | bytes | os.PathLike[str],
    *,
    n_threads: int | None,
    n_ctx: int | None,
    n_batch: int,
    n_parallel: int,
    pre: str | None,
) -> Loaded:
    """Load a model; arguments and errors as for `LLM`."""
    started = time.perf_counter()
    source = arguments.path("model", model)
    if n_threads is not None:
        n_threads = arguments.whole("n_threads", n_threads, 1, 1024)
    n_batch = arguments.whole("n_batch", n_batch, 1, 1 << 20)
    n_parallel = arguments.whole("n_parallel", n_parallel, 1, 1 << 12)
    try:
        checkpoint = formats.read(hub.resolve(source), pre)
        max_ctx, advice = checkpoint.config.n_ctx, "choose -c or n_ctx within the model's"
        n_ctx = arguments.whole("n_ctx", max_ctx if n_ctx is None else n_ctx, 1, max_ctx, advice)
        room = memory.check(checkpoint, memory.Use(n_ctx, n_parallel * n_ctx, n_batch))
        threads = machine.threads(n_threads)
        threads = threads.started(ops.set_n_threads(threads.n_within(room)))
        net = models.build(checkpoint)
        engine = Engine(net, n_ctx=n_ctx, n_batch=n_batch, n_parallel=n_parallel)
        tokenizer = Tokenizer(checkpoint.vocab)
    except MemoryError:
        raise out_of_memory(source) from None
    ms = (time.perf_counter() - started) * 1e3
    facts = Facts.of(checkpoint, n_ctx=n_ctx, threads=threads, nbytes=net.nbytes, load_ms=ms)
    return Loaded(engine, tokenizer, facts)


def out_of_memory(where: str) -> MemoryLimitError:
    """The error where the system had no memory for a model or its answers."""
    found, advice = "not enough memory", "use a smaller model, type or context"
    return MemoryLimitError(where, found, "", advice)
