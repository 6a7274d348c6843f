"""LLM: text in, text out. A model, its tokenizer and an engine behind a few verbs.

Models come from `loading`, batches are made by `engine`, what an open model does beside answering
is in `opened`; front ends see this module only.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, overload

from starcoder import pocket
from starcoder.completion.plan import Planner
from starcoder.completion.prompts import Prompt, Prompts, check_is_one, grouped, is_many, repeated
from starcoder.completion.result import Completion
from starcoder.completion.stream import Stream
from starcoder.loading import load
from starcoder.opened import OpenModel
from starcoder.sampling.options import GenerationOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LLM"]


class LLM(OpenModel):
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
        n_parallel: requests of `n_ctx` tokens that run at once, where there is memory for them;
            of shorter ones more do, the rest wait.
        kv_memory: bytes for keys and values, of those that run and of those that may come back;
            by default for `n_parallel` requests. They are taken only when they are used.
        pre: how text is split before merging, where the file does not say it or says it wrongly:
            "refact" or "starcoder", every digit apart; "gpt-2", GPT-2's pattern alone.

    Raises:
        FormatError: no model there, or one that is damaged or of an unknown kind.
        InputError: a number outside its bounds, a Hub name that cannot be downloaded.
        MemoryLimitError: no memory for the model or its cache; said before weights are read.
    """

    def __init__(
        self,
        model: str | bytes | os.PathLike[str] = pocket.PATH,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_parallel: int = 8,
        kv_memory: int | None = None,
        pre: str | None = None,
    ) -> None:
        super().__init__(load(model, n_threads, n_ctx, n_batch, n_parallel, kv_memory, pre))
        self._planner = Planner(self._tokenizer, self.facts.n_ctx)

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(self, prompt: Prompts, **options: Unpack[Options]) -> list[Completion]: ...
    @overload
    def generate(
        self, prompt: Prompt, *, n: int, **options: Unpack[Options]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompt: Prompts, *, n: int, **options: Unpack[Options]
    ) -> list[list[Completion]]: ...
    def generate(
        self, prompt: Prompt | Prompts, *, n: int | None = None, **options: Unpack[Options]
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
            return grouped(self.generate(repeated(prompt, n), **options), prompt)
        if is_many(prompt):
            with ExitStack() as opened:
                streams = [opened.enter_context(one) for one in self.streams(prompt, **options)]
                return [stream.drain() for stream in streams]
        plan = self._planner.plan(prompt, GenerationOptions.of(options))
        return Stream(self._loop, plan).drain()

    def streams(self, prompts: Prompts, **options: Unpack[Options]) -> list[Stream]:
        """Continue several prompts in one continuous batch; arguments and errors as for `generate`.

        Where one cannot start, none does.
        """
        chosen = GenerationOptions.of(options)
        plans = [self._planner.plan(one, chosen.nth(i)) for i, one in enumerate(prompts)]
        with ExitStack() as started:
            streams = [started.enter_context(Stream(self._loop, plan)) for plan in plans]
            started.pop_all()
        return streams

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Continue a prompt piece by piece; arguments and errors as for `generate`.

        It takes one prompt: a list is one of token ids.
        """
        check_is_one(prompt)
        return Stream(self._loop, self._planner.plan(prompt, GenerationOptions.of(options)))
