"""StarCoder on CPUs, from Python: load, run and stream the StarCoder family of code models.

>>> import starcoder
>>> llm = starcoder.LLM("model.gguf")  # doctest: +SKIP
>>> llm.generate("def fibonacci(", max_tokens=64).text  # doctest: +SKIP

This is the whole public API. Names load on first use, so `import starcoder` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from starcoder.errors import FormatError as FormatError
from starcoder.errors import InputError as InputError
from starcoder.errors import MemoryLimitError as MemoryLimitError
from starcoder.errors import StarcoderError as StarcoderError
from starcoder.errors import WriteError as WriteError

if TYPE_CHECKING:
    from starcoder.aio import AsyncLLM as AsyncLLM
    from starcoder.aio import AsyncStream as AsyncStream
    from starcoder.completion.result import Completion as Completion
    from starcoder.completion.result import Piece as Piece
    from starcoder.completion.result import Timings as Timings
    from starcoder.completion.stream import Stream as Stream
    from starcoder.engine import EngineStats as EngineStats
    from starcoder.facts import Facts as Facts
    from starcoder.llm import LLM as LLM
    from starcoder.sampling.logprobs import TokenLogprobs as TokenLogprobs
    from starcoder.sampling.options import GenerationOptions as GenerationOptions
    from starcoder.sampling.sampler import LogitsError as LogitsError

__version__ = "0.1.0"

_HOMES = {
    "AsyncLLM": "aio",
    "AsyncStream": "aio",
    "Completion": "completion.result",
    "EngineStats": "engine",
    "Facts": "facts",
    "GenerationOptions": "sampling.options",
    "LLM": "llm",
    "LogitsError": "sampling.sampler",
    "Piece": "completion.result",
    "Stream": "completion.stream",
    "Timings": "completion.result",
    "TokenLogprobs": "sampling.logprobs",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncStream",
    "Completion",
    "EngineStats",
    "Facts",
    "FormatError",
    "GenerationOptions",
    "InputError",
    "LogitsError",
    "MemoryLimitError",
    "Piece",
    "StarcoderError",
    "Stream",
    "Timings",
    "TokenLogprobs",
    "WriteError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'starcoder' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"starcoder.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
