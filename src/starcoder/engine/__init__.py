"""The engine: requests of token ids in, token ids out. Text lives in `llm`, weights in `models`."""

from starcoder.engine.engine import Engine as Engine
from starcoder.engine.engine import Event as Event
from starcoder.engine.stats import EngineStats as EngineStats
from starcoder.engine.stats import RequestStats as RequestStats
