"""What the model card of a Hugging Face directory, README.md, says of license and origin.

Its front matter is YAML between two lines of three dashes. The few keys that a GGUF file has a
place for are text, or lists of text. A directory without a card, or with one that is no YAML, is as
good as any.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starcoder.formats.carried import encoded
from starcoder.formats.hf.files import placeholder_at

__all__ = ["card_keys"]

_MAX_BYTES = 1 << 16  # that are looked at; front matter comes first
_MAX_TEXT = 500  # characters of one value
_KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "description": "general.description",
}
_FRONT = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def card_keys(folder: Path) -> dict[str, bytes]:
    """Keys of a GGUF file, each with its encoded type and value; none without a card."""
    table = _front_matter(folder / "README.md")
    texts = {key: _text(table.get(name)) for name, key in _KEYS.items()}
    return {key: encoded(text) for key, text in texts.items() if text}


def _front_matter(card: Path) -> dict[str, Any]:
    if not card.is_file() or placeholder_at(card) is not None:
        return {}
    try:
        with card.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    except OSError:
        return {}
    front = _FRONT.match(text)
    if front is None or "\N{REPLACEMENT CHARACTER}" in front[1]:
        return {}
    import yaml  # a tenth of the time that loading a model takes, for a few directories

    try:
        table = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _text(value: object) -> str:
    """A text, or texts joined by commas; nothing for what is neither, or is not for people."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        return ""
    joined = " ".join(", ".join(map(str, texts)).split())
    return joined if joined.isprintable() and len(joined) <= _MAX_TEXT else ""
