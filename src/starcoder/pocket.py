"""Where the small model is that comes with the package: Pocket, a Python model for trying things.

It is a file as any other; what it can do and how it was made is in docs/model_card.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["PATH"]

PATH: Final = Path(__file__).with_name("starcoder-pocket-q4_0.gguf")
