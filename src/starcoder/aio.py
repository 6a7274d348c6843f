"""AsyncLLM: the verbs of LLM for programs that wait for many things at once.

The engine has a thread of its own, so nothing here blocks an event loop but loading a model, which
`AsyncLLM.load` does in another thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from collections.abc import Sequence as Ids
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from starcoder import pocket
from starcoder.completion.prompts import Prompt, Prompts, grouped, is_many, repeated
from starcoder.completion.result import Completion, Piece
from starcoder.completion.stream import Stream
from starcoder.engine import EngineStats
from starcoder.facts import Facts
from starcoder.llm import LLM
from starcoder.sampling.options import GenerationOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncLLM", "AsyncStream"]


class AsyncStream(AsyncIterator[Piece]):
    """The pieces of one answer, made by `AsyncLLM.stream`. Closing or dropping it ends the request.

    A task that is cancelled while it waits for a piece loses none: another may go on reading.

    >>> async with llm.stream("def ") as stream:  # doctest: +SKIP
    ...     async for piece in stream:
    ...         print(piece.text, end="")
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._came = asyncio.Event()
        self._tell = partial(_set, asyncio.get_running_loop(), self._came)
        stream.call_on_event(self._tell)

    async def __anext__(self) -> Piece:
        while not self._stream.has_piece:
            self._came.clear()
            if not self._stream.has_piece:  # it may have come before `clear`
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._came.wait(), self._stream.seconds_left)
                self._stream.end_if_late()
        try:
            return next(self._stream)
        except StopIteration:
            raise StopAsyncIteration from None

    @property
    def options(self) -> GenerationOptions:
        """What the answer was asked for with."""
        return self._stream.options

    @property
    def prompt_tokens(self) -> int:
        """How many token ids the prompt has."""
        return self._stream.prompt_tokens

    @property
    def completion(self) -> Completion:
        """What was read so far; "cancelled" unless the end was reached."""
        return self._stream.completion

    async def drain(self) -> Completion:
        """Read to the end."""
        async for _ in self:
            pass
        return self.completion

    def close(self) -> None:
        """End the request. Safe from any thread."""
        self._stream.close()
        self._tell()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncLLM:
    """A model that is ready to answer, for asyncio. Arguments and errors as for `LLM`.

    >>> llm = await AsyncLLM.load("starcoderbase-1b-q4_0.gguf")  # doctest: +SKIP
    >>> (await llm.generate("def fibonacci(", max_tokens=64)).text  # doctest: +SKIP
    """

    def __init__(self, model: str | bytes | os.PathLike[str] = pocket.PATH, **kwargs: Any) -> None:
        self._llm = LLM(model, **kwargs)

    @classmethod
    async def load(
        cls, model: str | bytes | os.PathLike[str] = pocket.PATH, **kwargs: Any
    ) -> AsyncLLM:
        """Load a model while others go on."""
        return await asyncio.to_thread(cls, model, **kwargs)

    @property
    def facts(self) -> Facts:
        """What the model is, and how it runs here."""
        return self._llm.facts

    @overload
    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion: ...
    @overload
    async def generate(self, prompt: Prompts, **options: Unpack[Options]) -> list[Completion]: ...
    @overload
    async def generate(
        self, prompt: Prompt, *, n: int, **options: Unpack[Options]
    ) -> list[Completion]: ...
    @overload
    async def generate(
        self, prompt: Prompts, *, n: int, **options: Unpack[Options]
    ) -> list[list[Completion]]: ...
    async def generate(
        self, prompt: Prompt | Prompts, *, n: int | None = None, **options: Unpack[Options]
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue a prompt, or each of a list of prompts; as `LLM.generate`.

        Cancelling it ends the requests.
        """
        if n is not None:
            return grouped(await self.generate(repeated(prompt, n), **options), prompt)
        if not is_many(prompt):
            async with AsyncStream(self._llm.stream(cast(Any, prompt), **options)) as stream:
                return await stream.drain()
        async with AsyncExitStack() as opened:
            streams = [
                await opened.enter_async_context(AsyncStream(one))
                for one in self._llm.streams(prompt, **options)
            ]
            return [await stream.drain() for stream in streams]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """Continue a prompt piece by piece; as `LLM.stream`."""
        return AsyncStream(self._llm.stream(prompt, **options))

    async def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n); as `LLM.logits`."""
        return await asyncio.to_thread(self._llm.logits, tokens)

    async def save_cache(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> int:
        """Keep computed prompts in a file, for the next start; as `LLM.save_cache`."""
        return await asyncio.to_thread(self._llm.save_cache, path, max_bytes)

    async def load_cache(self, path: str | os.PathLike[str]) -> int:
        """Take over computed prompts from a file; as `LLM.load_cache`."""
        return await asyncio.to_thread(self._llm.load_cache, path)

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text; as `LLM.tokenize`."""
        return self._llm.tokenize(text)

    def detokenize(self, tokens: Ids[int]) -> str:
        """The text of token ids; as `LLM.detokenize`."""
        return self._llm.detokenize(tokens)

    def stats(self) -> EngineStats:
        """How many requests run and wait, and how much of the cache is free."""
        return self._llm.stats()

    async def close(self) -> None:
        """End all requests and the thread that runs them."""
        await asyncio.to_thread(self._llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _set(loop: asyncio.AbstractEventLoop, came: asyncio.Event) -> None:
    """Wake who waits, from any thread; the engine's goes on where the event loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(came.set)
