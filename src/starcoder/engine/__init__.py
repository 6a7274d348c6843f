"""The engine: requests of token ids in, token ids out.

Text is for `completion`, weights are for `model`.
"""

from starcoder.engine.engine import Engine as Engine
from starcoder.engine.events import EngineStats as EngineStats
from starcoder.engine.events import Event as Event
from starcoder.engine.events import RequestStats as RequestStats
from starcoder.engine.kv_keep import Entry as Entry
from starcoder.engine.kv_keep import Restorer as Restorer
from starcoder.engine.kv_keep import hold as hold
from starcoder.engine.kv_keep import release as release
from starcoder.engine.loop import Loop as Loop
from starcoder.engine.loop import Request as Request
