"""LLM: text in, text out. It joins a model, its tokenizer and an engine behind a few verbs.

Files are opened by `formats`, batches are made by `engine`; front ends see this module only.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from starcoder import formats, hub, machine, memory, models, ops, pocket
from starcoder.completion import Completion
from starcoder.engine import Engine
from starcoder.errors import InputError, MemoryLimitError
from starcoder.facts import Facts
from starcoder.sampler import SamplingParams
from starcoder.stream import Desk, Stream
from starcoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import TypeGuard

    from typing_extensions import Unpack

__all__ = ["LLM", "Options"]


class Options(TypedDict, total=False):
    """How to answer a prompt. What is left out has the default that is given here."""

    max_tokens: int  # 200: most tokens to generate; clamped to what the context has left
    ignore_eos: bool  # False; True: go on after the model's end token, as part of the text
    temperature: float  # 0.0: always the most likely token, the usual choice for code
    top_k: int  # 40: choose among this many most likely tokens; 0: among all
    top_p: float  # 0.9: then among the fewest that together have this probability
    repeat_last_n: int  # 64: tokens back that are penalized; -1: all
    repeat_penalty: float  # 1.0: above it, tokens seen lately become less likely
    seed: int | None  # None: random; prompt number i of a list uses seed + i


_DEFAULTS: Options = {
    "max_tokens": 200,
    "ignore_eos": False,
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 0.9,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "seed": None,
}


class LLM:
    """A model that is ready to answer.

    >>> llm = LLM("starcoderbase-1b-q4_0.gguf")  # doctest: +SKIP
    >>> llm.generate("def fibonacci(", max_tokens=64).text  # doctest: +SKIP

    Methods may be called from several threads, and streams may be read in turn: whoever waits
    runs the steps of all. The thread count is one for the process; the last LLM sets it.

    Args:
        model: a GGUF file, a legacy ggml file, a Hugging Face directory, or a name on the Hub:
            "owner/name", "owner/name:q4_0", the URL of a model's page; `hub.resolve` has more.
            By default the small Python model that comes with the package.
        n_threads: threads that share the arithmetic; by default the physical cores that this
            process may use. No more run than it may use CPUs: `facts` says so.
        n_ctx: most tokens of prompt and output together; by default what the model was made for.
        n_batch: most tokens in one step. The text never depends on it.
        n_parallel: requests of `n_ctx` tokens that run at once; of shorter ones more do, the
            rest wait. Memory is taken only when it is used.
        pre: how text is split before merging, where the file does not say it or says it wrongly:
            "refact" or "starcoder", every digit apart; "gpt-2", GPT-2's pattern alone.

    Raises:
        FormatError: no model there, or one that is damaged or of an unknown kind.
        InputError: a number outside its bounds, a Hub name that cannot be downloaded.
        MemoryLimitError: no memory for the model or its cache; said before weights are read.
    """

    facts: Facts
    load_ms: float

    def __init__(
        self,
        model: str | os.PathLike[str] = pocket.PATH,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_parallel: int = 8,
        pre: str | None = None,
    ) -> None:
        started = time.perf_counter()
        if n_threads is not None:
            _check("n_threads", n_threads, 1024)
        _check("n_batch", n_batch, 1 << 20)
        _check("n_parallel", n_parallel, 1 << 12)
        try:
            checkpoint = formats.read(hub.resolve(model), pre)
            n_ctx = checkpoint.config.n_ctx if n_ctx is None else n_ctx
            _check("n_ctx", n_ctx, checkpoint.config.n_ctx, "choose -c or n_ctx within the model's")
            memory.check(checkpoint, memory.Use(n_ctx, n_parallel * n_ctx, n_batch))
            threads = machine.threads(n_threads)
            threads = threads.started(ops.set_n_threads(threads.n))
            net = models.build(checkpoint)
            engine = Engine(net, n_ctx=n_ctx, n_batch=n_batch, n_parallel=n_parallel)
            self._tokenizer = Tokenizer(checkpoint.vocab)
        except MemoryError:
            raise _out_of_memory(str(model)) from None
        self._desk = Desk(engine)
        self.facts = Facts.of(checkpoint, n_ctx=n_ctx, threads=threads, nbytes=net.nbytes)
        self.load_ms = (time.perf_counter() - started) * 1e3

    @overload
    def generate(self, prompt: str | list[int], **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], **options: Unpack[Options]
    ) -> list[Completion]: ...
    def generate(
        self, prompt: str | list[int] | list[str] | list[list[int]], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continue a prompt, or each of a list of prompts in one continuous batch.

        Args:
            prompt: text, in which special tokens are recognized, or token ids. An empty text
                stands for the token that opens a document; an empty list is no prompts.
            **options: see `Options`.

        Raises:
            InputError: an option outside its bounds, a prompt longer than the context.
            LogitsError: the model gave no numbers; its file is probably damaged.
        """
        if _is_many(prompt):
            streams = [self._start(one, i, options) for i, one in enumerate(prompt)]
            return [stream.drain() for stream in streams]
        return self._start(prompt, 0, options).drain()

    def stream(self, prompt: str | list[int], **options: Unpack[Options]) -> Stream:
        """Continue a prompt piece by piece; arguments and errors as for `generate`."""
        return self._start(prompt, 0, options)

    def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n).

        Row i depends on `tokens[: i + 1]` only, to the last bit.

        Raises:
            InputError: no tokens, more than the context, or an id that no token has.
            MemoryLimitError: no memory for the 4 * n * n_vocab bytes.
        """
        ids = _ids(tokens)
        sequence = self._desk.submit(ids, SamplingParams(temperature=0), wants_logits=True)
        try:
            out = np.empty((len(ids), self.facts.n_vocab), np.float32)
            n_done = 0
            while n_done < len(ids):
                rows = self._desk.next_event(sequence).logits  # (r, n_vocab)
                assert rows is not None
                out[n_done : n_done + len(rows)] = rows
                n_done += len(rows)
        except MemoryError:
            raise _out_of_memory("logits") from None
        finally:
            self._desk.cancel(sequence)
        return out

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text; `<|endoftext|>` and its like become one id each.

        Raises:
            InputError: text that was never valid Unicode, or that the vocabulary cannot spell.
        """
        return self._tokenizer.encode(text)

    def detokenize(self, tokens: Ids[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id that no token has.
        """
        return self._tokenizer.decode(_ids(tokens))

    # -----------------------------------------------------------------------------------------

    def _start(self, prompt: object, index: int, options: Options) -> Stream:
        """Hand in prompt number `index` of a list."""
        chosen = _DEFAULTS | options
        unknown = chosen.keys() - _DEFAULTS.keys()
        if unknown:
            raise InputError(f"option {min(unknown)!r}", "no such option", ", ".join(_DEFAULTS))
        seed = chosen["seed"]
        params = SamplingParams(
            temperature=chosen["temperature"],
            top_k=chosen["top_k"],
            top_p=chosen["top_p"],
            repeat_last_n=chosen["repeat_last_n"],
            repeat_penalty=chosen["repeat_penalty"],
            seed=seed if seed is None or index == 0 else seed + index,
        )
        _check("max_tokens", chosen["max_tokens"], 1 << 31, low=0)
        sequence = self._desk.submit(
            self._prompt_ids(prompt),
            params,
            max_tokens=chosen["max_tokens"],
            stop_ids=() if chosen["ignore_eos"] else self._tokenizer.vocab.end_ids,
        )
        return Stream(self._desk, sequence, self._tokenizer, self.load_ms)

    def _prompt_ids(self, prompt: object) -> list[int]:
        ids = self.tokenize(prompt) if isinstance(prompt, str) else _ids(prompt)
        if ids:
            return ids
        vocab = self._tokenizer.vocab
        start = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
        if start is None:
            found, expected = "nothing", "text: this model has no token that opens a document"
            raise InputError("prompt", found, expected)
        return [start]


# ---------------------------------------------------------------------------------------------


def _is_many(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> TypeGuard[list[str] | list[list[int]]]:
    if not isinstance(prompt, (list, tuple)):
        return False
    return not prompt or not hasattr(prompt[0], "__index__")


def _ids(tokens: object) -> list[int]:
    try:
        return [operator.index(token) for token in tokens]  # type: ignore[attr-defined]
    except TypeError:
        found = type(tokens).__name__
        raise InputError("tokens", found, "a list of token ids (whole numbers), or text") from None


def _check(name: str, value: int, high: int, advice: str = "", *, low: int = 1) -> None:
    try:
        good = low <= operator.index(value) <= high
    except TypeError:
        good = False
    if not good:
        raise InputError(name, repr(value), f"a whole number from {low} to {high}", advice)


def _out_of_memory(where: str) -> MemoryLimitError:
    found, advice = "not enough memory", "use a smaller model, type or context"
    return MemoryLimitError(where, found, "room for it", advice)
