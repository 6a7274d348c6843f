"""Model files that are refused, and how."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from starcoder import FormatError, formats


def refused(path: Path, *words: str) -> str:
    """Reading ends in one line that has these words, and does not blame the bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError) as caught:
            formats.read(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "damaged" not in message
    assert message.isprintable()
    return message
