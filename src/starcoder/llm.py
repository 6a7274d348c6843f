"""LLM: text in, text out. A model, its tokenizer and an engine behind a few verbs.

Models come from `loading`, batches are made by `engine`; front ends see this module only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Ids
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from starcoder import arguments, pocket
from starcoder.completion.prompts import check_is_one, is_many, prompt_ids, token_ids
from starcoder.completion.result import Completion
from starcoder.completion.stream import Desk, Stream
from starcoder.engine import EngineStats
from starcoder.errors import InputError
from starcoder.facts import Facts
from starcoder.loading import load, out_of_memory
from starcoder.sampling.options import GenerationOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LLM"]


class LLM:
    """A model that is ready to answer.

    >>> llm = LLM("starcoderbase-1b-q4_0.gguf")  # doctest: +SKIP
    >>> llm.generate("def fibonacci(", max_tokens=64).text  # doctest: +SKIP

    Methods may be called from several threads, and streams may be read in turn. There is no
    background thread: a caller that waits for a token runs the next step for all requests.
    `n_threads` is for the whole process; the LLM made last sets it.

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
        self._desk = Desk(loaded.engine)

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
            **options: see `GenerationOptions`. Prompt number i of a list uses seed + i.

        Raises:
            InputError: an option outside its bounds, a prompt longer than the context; of a list,
                none is answered then.
            LogitsError: the model gave no numbers; its file is probably damaged.
        """
        chosen = GenerationOptions.of(options)
        if not is_many(prompt):
            return self._start(self._prompt_ids(prompt), chosen).drain()
        all_ids = [self._prompt_ids(one) for one in prompt]
        with ExitStack() as streams:  # which ends the others when one cannot start
            started = [
                streams.enter_context(self._start(ids, chosen.nth(i)))
                for i, ids in enumerate(all_ids)
            ]
            return [stream.drain() for stream in started]

    def stream(self, prompt: str | list[int], **options: Unpack[Options]) -> Stream:
        """Continue a prompt piece by piece; arguments and errors as for `generate`.

        It takes one prompt: a list is one of token ids.
        """
        check_is_one(prompt)
        return self._start(self._prompt_ids(prompt), GenerationOptions.of(options))

    def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n).

        Row i depends on `tokens[: i + 1]` only, to the last bit.

        Raises:
            InputError: no tokens, more than the context, or an id that no token has.
            MemoryLimitError: no memory for the 4 * n * n_vocab bytes.
        """
        ids = token_ids(tokens)
        request = self._desk.submit(ids, GenerationOptions(), wants_logits=True)
        try:
            out = np.empty((len(ids), self.facts.n_vocab), np.float32)
            n_done = 0
            while n_done < len(ids):
                event = self._desk.next_event(request)
                assert event is not None
                assert event.logits is not None  # (r, n_vocab)
                out[n_done : n_done + len(event.logits)] = event.logits
                n_done += len(event.logits)
        except MemoryError:
            raise out_of_memory("logits") from None
        finally:
            self._desk.cancel(request)
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
        return self._desk.stats()

    # -----------------------------------------------------------------------------------------

    def _start(self, ids: list[int], options: GenerationOptions) -> Stream:
        return Stream(self._desk, ids, options, self._tokenizer)

    def _prompt_ids(self, prompt: object) -> list[int]:
        return prompt_ids(prompt, self._tokenizer, self.facts.n_ctx)

    def __reduce__(self) -> NoReturn:
        found = "an attempt to copy it or send it to another process"
        advice = "make it once in each process, or before a fork: see docs/multiprocessing.md"
        raise InputError("LLM", found, "one LLM in each process", advice)
