"""What the model card of a Hugging Face directory, README.md, says of license and origin.

Its front matter is YAML between two lines of three dashes. The few keys that a GGUF file has a
place for are text or lists of text, each on lines of its own; what is written otherwise is left to
whoever reads the card. A directory without a card is as good as any.
"""

from __future__ import annotations

import re
from pathlib import Path

from starcoder.formats._gguf_carry import encoded
from starcoder.formats._hf_files import placeholder_at

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
_ENTRY = re.compile(r"^(\w+):[ \t]*([^\n]*)((?:\n[ \t]*-[ \t]+[^\n]*)*)", re.MULTILINE)
_QUOTED = re.compile(r"""\s*(["'])([^"'\\]*)\1\s*(?:\s#.*)?""")
_ITEM = re.compile(r"^[ \t]*-[ \t]+(.*)$", re.MULTILINE)


def card_keys(folder: Path) -> dict[str, bytes]:
    """Keys of a GGUF file, each with its encoded type and value; none without a card."""
    card = folder / "README.md"
    if not card.is_file() or placeholder_at(card) is not None:
        return {}
    try:
        with card.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return {}
    front = _FRONT.match(text)
    found = {}
    for entry in _ENTRY.finditer(front[1]) if front else ():
        key, value = _KEYS.get(entry[1]), _value(entry[2], entry[3])
        if key is not None and value:
            found[key] = encoded(value)
    return found


def _value(scalar: str, items: str) -> str:
    """A text, or texts joined by commas; nothing for what is neither."""
    texts = [_plain(scalar)] if scalar.strip() else [_plain(item) for item in _ITEM.findall(items)]
    joined = ", ".join(filter(None, texts))
    return joined if joined.isprintable() and len(joined) <= _MAX_TEXT else ""


def _plain(text: str) -> str:
    """A scalar without its quotes; of one that is not plain YAML on its line, nothing."""
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return quoted[2]
    text = re.split(r"\s#", text, maxsplit=1)[0].strip()
    return "" if text[:1] in ("", *"[{|>&*!%@`\"'#") else text
