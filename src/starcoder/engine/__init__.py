"""The engine: requests of token ids in, token ids out.

Text is for `completion`, weights are for `model`.
"""

from starcoder.engine.engine import Engine as Engine
from starcoder.engine.events import EngineStats as EngineStats
from starcoder.engine.events import Event as Event
from starcoder.engine.events import RequestStats as RequestStats
