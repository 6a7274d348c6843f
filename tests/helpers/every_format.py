"""The writers of the tiny model, one a format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel

WRITERS: dict[str, Callable[[Path, TinyModel], Path]] = {
    "gguf": write_gguf,
    "legacy": write_legacy,
    "hf": write_hf,
}
