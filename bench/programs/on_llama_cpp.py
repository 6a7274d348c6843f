"""llama.cpp by its Python package. Flash attention is on or off, whichever is faster here."""

from __future__ import annotations

import random
import time
from typing import Any

import llama_cpp

PROGRAM = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
_CHUNK = 512


class LlamaCpp:
    """One model with its cache filled up to the depth."""

    def __init__(self, settings: dict[str, Any], flash: bool) -> None:
        self._n_prompt, self._n_decode = settings["n_prompt"], settings["n_decode"]
        self._depth = settings["depth"]
        n = self._depth + max(self._n_prompt, self._n_decode)
        self._llm = llama_cpp.Llama(
            settings["path"],
            n_ctx=n + 32,
            n_batch=_CHUNK,
            n_ubatch=_CHUNK,
            n_threads=settings["n_threads"],
            n_threads_batch=settings["n_threads"],
            flash_attn=flash,
            logits_all=False,
            verbose=False,
        )
        self.note = f"flash attention {'on' if flash else 'off'}"
        numbers = random.Random(0)
        self._ids = [numbers.randrange(self._llm.n_vocab()) for _ in range(n)]
        self._llm.eval(self._ids[: self._depth] or self._ids[:1])

    def prompt(self) -> float:
        """Seconds for the prompt, after the depth."""
        self._llm.n_tokens = self._depth  # `eval` forgets what is beyond
        start = time.perf_counter()
        self._llm.eval(self._ids[self._depth : self._depth + self._n_prompt])
        return time.perf_counter() - start

    def decode(self) -> float:
        """Seconds for the tokens one by one, after the depth."""
        self._llm.n_tokens = self._depth
        start = time.perf_counter()
        for token in self._ids[self._depth : self._depth + self._n_decode]:
            self._llm.eval([token])
        return time.perf_counter() - start

    def close(self) -> None:
        """Give the memory back."""
        self._llm.close()


def load(settings: dict[str, Any]) -> LlamaCpp:
    """With the faster of two settings, by a prompt and some tokens after a warm-up.

    One is closed before the other is opened: there may be no room for both.
    """
    seconds = {flash: _try(settings, flash) for flash in (True, False)}
    program = LlamaCpp(settings, flash=seconds[True] < seconds[False])
    program.prompt()
    return program


def _try(settings: dict[str, Any], flash: bool) -> float:
    program = LlamaCpp(settings, flash)
    program.prompt()
    seconds = program.prompt() + program.decode()
    program.close()
    return seconds
