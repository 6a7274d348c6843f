"""Files that stand in for another one: git-lfs pointers, and pages that a download brought instead.

Both happen to any file of any format, and have the right name. What else a file may be is for
`strangers`, and for the readers.
"""

from __future__ import annotations

from starcoder.formats.io.reject import shown

__all__ = ["placeholder"]

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
# fmt: off
_ANSWERS = (  # of the Hub and its like in place of a file
    b"entry not found", b"repository not found", b"not found", b"404", b"forbidden",
    b"unauthorized", b"invalid username", b"access to model", b'{"error"',
)
# fmt: on
_FETCH = "run `git lfs install` and `git lfs pull` in its folder, or download the file again"
_AGAIN = "download the file again; is a login or a proxy in between?"


def placeholder(head: bytes) -> tuple[str, str] | None:
    """What a file that starts so stands in for, and what to do; None if it is no such file."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_LFS):
        return "a git-lfs pointer instead of the file", _FETCH
    if start.startswith((*_PAGES, *_ANSWERS)):
        line = head[:256].decode("latin-1").strip().splitlines()[0]
        return f"a web page or its error, {shown(line, 60)!r}", _AGAIN
    return None
