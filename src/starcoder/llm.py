"""LLM: text in, text out. It joins a model, its tokenizer and an engine behind a few verbs.

Files are opened by `formats`, batches are made by `engine`; front ends see this module only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Ids
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from starcoder import arguments, formats, hub, machine, memory, models, ops, pocket
from starcoder.completion import Completion
from starcoder.engine import Engine
from starcoder.errors import InputError, MemoryLimitError
from starcoder.facts import Facts
from starcoder.sampler import MOST_TOKENS, SamplingParams
from starcoder.stream import Desk, Stream
from starcoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import TypeGuard

    from typing_extensions import Unpack

__all__ = ["LLM", "Options"]

_PROMPT = "text, a list of token ids, or a list of these"
_MANY = (str, list, tuple)  # what makes a list of prompts of a list
_SHORTEN = "shorten it, or raise the context with -c or n_ctx if the model allows"


class Options(TypedDict, total=False):
    """How to answer a prompt. What is left out has the default that is given here."""

    max_tokens: int  # 200: most tokens to generate; clamped to what the context has left
    ignore_eos: bool  # False; True: go on after the model's end token, as part of the text
    temperature: float  # 0.0: always the most likely token, the usual choice for code
    top_k: int  # 40: choose among this many most likely tokens; 0: among all
    top_p: float  # 0.9: then among the fewest that together have this probability
    repeat_last_n: int  # 64: tokens back that are penalized; -1: all
    repeat_penalty: float  # 1.0: above it, tokens seen lately become less likely
    seed: int | None  # None or -1: random; prompt number i of a list uses seed + i


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
        model: str | bytes | os.PathLike[str] = pocket.PATH,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_parallel: int = 8,
        pre: str | None = None,
    ) -> None:
        started = time.perf_counter()
        source = arguments.path("model", model)
        if n_threads is not None:
            n_threads = arguments.whole("n_threads", n_threads, 1, 1024)
        n_batch = arguments.whole("n_batch", n_batch, 1, 1 << 20)
        n_parallel = arguments.whole("n_parallel", n_parallel, 1, 1 << 12)
        try:
            checkpoint = formats.read(hub.resolve(source), pre)
            max_ctx, advice = checkpoint.config.n_ctx, "choose -c or n_ctx within the model's"
            n_ctx = max_ctx if n_ctx is None else n_ctx
            n_ctx = arguments.whole("n_ctx", n_ctx, 1, max_ctx, advice)
            room = memory.check(checkpoint, memory.Use(n_ctx, n_parallel * n_ctx, n_batch))
            threads = machine.threads(n_threads)
            threads = threads.started(ops.set_n_threads(threads.n_within(room)))
            net = models.build(checkpoint)
            engine = Engine(net, n_ctx=n_ctx, n_batch=n_batch, n_parallel=n_parallel)
            self._tokenizer = Tokenizer(checkpoint.vocab)
        except MemoryError:
            raise _out_of_memory(source) from None
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
            InputError: an option outside its bounds, a prompt longer than the context; of a list,
                none is answered then.
            LogitsError: the model gave no numbers; its file is probably damaged.
        """
        if not _is_many(prompt):
            return self._start(prompt, 0, options).drain()
        with ExitStack() as streams:  # one that cannot run takes none of the others along
            ids = [self._prompt_ids(one) for one in prompt]
            started = [
                streams.enter_context(self._start(one, i, options)) for i, one in enumerate(ids)
            ]
            return [stream.drain() for stream in started]

    def stream(self, prompt: str | list[int], **options: Unpack[Options]) -> Stream:
        """Continue a prompt piece by piece; arguments and errors as for `generate`.

        It takes one prompt: a list is one of token ids.
        """
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], _MANY):
            advice = "stream() takes one prompt; generate() takes a list"
            raise InputError("prompt", "a list of prompts", "one prompt", advice)
        return self._start(prompt, 0, options)

    def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n).

        Row i depends on `tokens[: i + 1]` only, to the last bit.

        Raises:
            InputError: no tokens, more than the context, or an id that no token has.
            MemoryLimitError: no memory for the 4 * n * n_vocab bytes.
        """
        ids = _token_ids(tokens)
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
        return self._tokenizer.encode(arguments.text("text", text))

    def detokenize(self, tokens: Ids[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id that no token has.
        """
        return self._tokenizer.decode(_token_ids(tokens))

    # -----------------------------------------------------------------------------------------

    def _start(self, prompt: object, index: int, options: Options) -> Stream:
        """Hand in prompt number `index` of a list."""
        chosen = _DEFAULTS | options
        unknown = chosen.keys() - _DEFAULTS.keys()
        if unknown:
            raise InputError(f"option {min(unknown)!r}", "no such option", ", ".join(_DEFAULTS))
        params = SamplingParams(
            temperature=chosen["temperature"],
            top_k=chosen["top_k"],
            top_p=chosen["top_p"],
            repeat_last_n=chosen["repeat_last_n"],
            repeat_penalty=chosen["repeat_penalty"],
            seed=chosen["seed"],
        )
        if index and params.seed is not None:
            params = replace(params, seed=params.seed + index)
        ignore_eos = arguments.flag("ignore_eos", chosen["ignore_eos"])
        sequence = self._desk.submit(
            self._prompt_ids(prompt),
            params,
            max_tokens=arguments.whole("max_tokens", chosen["max_tokens"], 0, MOST_TOKENS),
            stop_ids=() if ignore_eos else self._tokenizer.vocab.end_ids,
        )
        return Stream(self._desk, sequence, self._tokenizer, self.load_ms)

    def _prompt_ids(self, prompt: object) -> list[int]:
        if isinstance(prompt, str):
            self._check_fits(prompt)
            ids = self._tokenizer.encode(prompt)
        else:
            ids = arguments.token_ids("prompt", prompt, _PROMPT)
        if ids:
            return ids
        vocab = self._tokenizer.vocab
        start = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
        if start is None:
            found, expected = "nothing", "text: this model has no token that opens a document"
            raise InputError("prompt", found, expected)
        return [start]

    def _check_fits(self, text: str) -> None:
        """Refuse what no tokens could make short enough, before the work of finding them."""
        longest, n_ctx = self._tokenizer.max_token_bytes, self.facts.n_ctx
        n_bytes = len(text)  # at least; counting may take four times as much
        if n_bytes <= n_ctx * longest:
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
        if n_bytes > n_ctx * longest:
            found = f"{len(text):,} characters"
            expected = f"at most {n_ctx} tokens, of {longest} bytes at most"
            raise InputError("prompt", found, expected, _SHORTEN)

    def __reduce__(self) -> NoReturn:
        found = "an attempt to copy it or send it to another process"
        advice = "make it once in each process, or before a fork: see docs/multiprocessing.md"
        raise InputError("LLM", found, "one LLM in each process", advice)


# ---------------------------------------------------------------------------------------------


def _is_many(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> TypeGuard[list[str] | list[list[int]]]:
    if not isinstance(prompt, (list, tuple)):
        return False
    return not prompt or not arguments.is_whole(prompt[0])


def _token_ids(tokens: object) -> list[int]:
    advice = "llm.tokenize(text) makes them" if isinstance(tokens, str) else ""
    return arguments.token_ids("tokens", tokens, advice=advice)


def _out_of_memory(where: str) -> MemoryLimitError:
    found, advice = "not enough memory", "use a smaller model, type or context"
    return MemoryLimitError(where, found, "room for it", advice)
