"""LLM: text in, text out. A model, its tokenizer and an engine behind a few verbs.

Models come from `loading`, batches are made by `engine`; front ends see this module only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Ids
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from starcoder import arguments, pocket
from starcoder.completion import Completion
from starcoder.engine import EngineStats, Loop
from starcoder.errors import InputError, StarcoderError
from starcoder.facts import Facts
from starcoder.loading import load, out_of_memory
from starcoder.options import GenerationOptions, Options
from starcoder.plan import Planner
from starcoder.prompts import check_is_one, grouped, is_many, prompt_ids, repeated, token_ids
from starcoder.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LLM"]


class LLM:
    """A model that is ready to answer.

    >>> llm = LLM("starcoderbase-1b-q4_0.gguf")  # doctest: +SKIP
    >>> llm.generate("def fibonacci(", max_tokens=64).text  # doctest: +SKIP

    Methods may be called from several threads, and streams may be read in turn: a thread of the
    LLM's own runs all requests together. `n_threads` is for the whole process; the LLM made last
    sets it.

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
        loaded = load(
            model, n_threads=n_threads, n_ctx=n_ctx, n_batch=n_batch, n_parallel=n_parallel, pre=pre
        )
        self.facts, self._tokenizer = loaded.facts, loaded.tokenizer
        self._loop = Loop(loaded.engine)
        self._planner = Planner(self._tokenizer)

    @overload
    def generate(self, prompt: str | list[int], **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], **options: Unpack[Options]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompt: str | list[int], *, n: int, **options: Unpack[Options]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], *, n: int, **options: Unpack[Options]
    ) -> list[list[Completion]]: ...
    def generate(
        self,
        prompt: str | list[int] | list[str] | list[list[int]],
        *,
        n: int | None = None,
        **options: Unpack[Options],
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue a prompt, or each of a list of prompts in one continuous batch.

        Args:
            prompt: text, in which special tokens are recognized, or token ids. An empty text
                stands for the token that opens a document; an empty list is no prompts.
            n: how many answers to each prompt, which is computed once; they come as a list.
            **options: see `GenerationOptions`. Answer number i of all uses seed + i.

        Raises:
            InputError: an option outside its bounds, a prompt longer than the context; of a list,
                none is answered then.
            LogitsError: the model gave no numbers; its file is probably damaged.
        """
        if n is not None:
            return grouped(self.generate(repeated(prompt, n), **options), prompt, n)
        if is_many(prompt):
            with ExitStack() as opened:
                streams = [opened.enter_context(one) for one in self.streams(prompt, **options)]
                return [stream.drain() for stream in streams]
        return self._start(prompt, self._prompt_ids(prompt), GenerationOptions.of(options)).drain()

    def streams(
        self, prompts: list[str] | list[list[int]], **options: Unpack[Options]
    ) -> list[Stream]:
        """Continue several prompts in one continuous batch; arguments and errors as for `generate`.

        Where one cannot start, none does.
        """
        chosen = GenerationOptions.of(options)
        all_ids = [self._prompt_ids(one) for one in prompts]
        with ExitStack() as started:
            streams = [
                started.enter_context(self._start(one, ids, chosen.nth(i)))
                for i, (one, ids) in enumerate(zip(prompts, all_ids, strict=True))
            ]
            started.pop_all()
        return streams

    def stream(self, prompt: str | list[int], **options: Unpack[Options]) -> Stream:
        """Continue a prompt piece by piece; arguments and errors as for `generate`.

        It takes one prompt: a list is one of token ids.
        """
        check_is_one(prompt)
        return self._start(prompt, self._prompt_ids(prompt), GenerationOptions.of(options))

    def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n).

        Row i depends on `tokens[: i + 1]` only, to the last bit.

        Raises:
            InputError: no tokens, more than the context, or an id that no token has.
            MemoryLimitError: no memory for the 4 * n * n_vocab bytes.
        """
        ids = token_ids(tokens)
        request = self._loop.submit(ids, GenerationOptions(), wants_logits=True)
        events = request.outbox.events
        try:
            out = np.empty((len(ids), self.facts.n_vocab), np.float32)
            n_done = i = 0
            while n_done < len(ids):
                event = request.wait(i)
                if event is None or event.logits is None:
                    raise _cancelled() if event is None or event.error is None else event.error
                out[n_done : n_done + len(event.logits)] = event.logits
                n_done += len(event.logits)
                events[i] = replace(event, logits=None)  # 100 MB, for StarCoder's vocabulary
                i += 1
        except MemoryError:
            raise out_of_memory("logits") from None
        finally:
            request.cancel()
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
        return self._tokenizer.decode(token_ids(tokens))

    def stats(self) -> EngineStats:
        """How many requests run and wait, and how much of the cache is free."""
        return self._loop.stats()

    def close(self) -> None:
        """End all requests and the thread that runs them; the weights are free when none is read.

        An LLM that is dropped ends by itself.
        """
        self._loop.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -----------------------------------------------------------------------------------------

    def _start(self, prompt: object, ids: list[int], options: GenerationOptions) -> Stream:
        plan = self._planner.plan(ids, options, is_text=isinstance(prompt, str))
        return Stream(self._loop, plan)

    def _prompt_ids(self, prompt: object) -> list[int]:
        return prompt_ids(prompt, self._tokenizer, self.facts.n_ctx)

    def __reduce__(self) -> NoReturn:
        found = "an attempt to copy it or send it to another process"
        advice = "make it once in each process, or before a fork: see docs/multiprocessing.md"
        raise InputError("LLM", found, "one LLM in each process", advice)


def _cancelled() -> StarcoderError:
    return StarcoderError("logits", "a closed model", "an open one", "make a new LLM")
