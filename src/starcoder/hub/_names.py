"""What users write for a model: a path, or a name of one on the Hub in its many spellings.

    owner/name    owner/name@revision    owner/name:q4_0    owner/name@revision:file.gguf
    hf://owner/name@revision/file.gguf    https://HOST/owner/name/blob/REVISION/file.gguf

Nothing is asked for here; which files a name means is for `_choice`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

from starcoder.errors import InputError
from starcoder.hub import _library

__all__ = ["Name", "parse", "shown"]

_OWNER_NAME = r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
_REVISION = r"\w[\w.-]{0,254}(?:/\w[\w.-]{0,254}){0,4}"
_SHORT_REVISION = r"refs/(?:pr|convert)/[\w.-]+|[\w.%-]+"  # where a file may follow after a slash
_WANTED = r"(?P<wanted>[^:@?#]{1,512})"

_PLAIN = re.compile(_OWNER_NAME, re.ASCII)
_ID = re.compile(rf"{_OWNER_NAME}(@(?P<revision>{_REVISION}))?(:{_WANTED})?", re.ASCII)
_HF = re.compile(rf"{_OWNER_NAME}(@(?P<revision>{_SHORT_REVISION}))?([:/]{_WANTED})?", re.ASCII)
_PAGE = re.compile(
    rf"{_OWNER_NAME}(/(tree|blob|resolve|raw)/(?P<revision>{_SHORT_REVISION})(/{_WANTED})?)?",
    re.ASCII,
)
_OTHER_PAGES = ("datasets", "spaces", "models", "docs", "collections", "papers", "api")
_FILE_SUFFIXES = (".gguf", ".bin", ".safetensors", ".json")  # a path, even if nothing is there

_EXPECTED = "a path, owner/name, hf://owner/name or the URL of a model's page"


class Name(NamedTuple):
    """A model on the Hub.

    `text` is what the user wrote and `revision` a branch, tag or commit. `wanted` names a type
    (q4_0) or a file, where one file of several is meant.
    """

    text: str
    repo: str
    revision: str | None = None
    wanted: str | None = None
    is_plain: bool = False  # owner/name may have been meant as a path


def parse(source: object, revision: str | None = None) -> Path | Name:
    """The path or the name that `source` is. What exists as a file or directory is a path.

    Raises:
        InputError: neither, or a revision that contradicts it.
    """
    text = _text(source)
    if revision is not None:
        _check_revision(revision)
    if os.path.exists(text):
        return _path(text, revision)
    name = _named(text)
    if name is None:
        return _path(text, revision)
    if revision not in (None, name.revision):
        if name.revision is not None:
            found = f"{name.revision!r} in {shown(text)} and {revision!r} beside it"
            raise InputError("revision", found, "one revision")
        name = name._replace(revision=revision)
    if name.revision is not None:
        _check_revision(name.revision)
    return name


def shown(text: str) -> str:
    """The text with nothing in it that could end a line or command a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _text(source: object) -> str:
    if not isinstance(source, str | bytes | os.PathLike):
        raise InputError("model", f"a value of type {type(source).__name__}", _EXPECTED)
    text = os.fsdecode(source)
    if not text:
        raise InputError("model", "an empty name", _EXPECTED)
    return text


def _path(text: str, revision: str | None) -> Path:
    if revision is not None:
        found, advice = f"{revision!r} for the path {shown(text)}", "leave it out"
        raise InputError("revision", found, "none: --revision is for Hub names only", advice)
    return Path(text)


def _check_revision(revision: object) -> None:
    is_one = isinstance(revision, str) and re.fullmatch(_REVISION, revision, re.ASCII)
    if not is_one or ".." in str(revision):
        raise InputError("revision", shown(repr(revision)), "a branch, tag or commit")


# ------------------------------------------------------------------------------------------------
# Spellings


def _named(text: str) -> Name | None:
    """The name that a text spells, also one pasted with blanks; None: it can only be a path."""
    text = text.strip()
    scheme, mark, rest = text.partition(":/")  # a Path made "//" one slash
    if mark and scheme.lower() == "hf":
        return _match(_HF, text, rest.lstrip("/"))
    if mark and scheme.lower() in ("http", "https"):
        host, _, page = rest.lstrip("/").partition("/")
        return _page(text, host, page)
    host, _, page = text.partition("/")
    if page and host.lower() in _library.hosts():
        return _page(text, host, page)
    if Path(text).suffix in _FILE_SUFFIXES and ":" not in text:
        return None
    found = _ID.fullmatch(text.removesuffix("/"))
    if found is None:
        return None
    is_plain = _PLAIN.fullmatch(found[0]) is not None
    return Name(text, _repo(found), found["revision"], found["wanted"], is_plain)


def _page(text: str, host: str, page: str) -> Name:
    """A model's page, or that of a file of it, as a browser shows its address."""
    if host.rpartition("@")[2].lower() not in _library.hosts():
        advice = "download the file and give its path"
        raise InputError(shown(text), "a URL of another host", _EXPECTED, advice)
    page = re.split(r"[?#]", page, maxsplit=1)[0].strip("/")
    if page.split("/")[0] in _OTHER_PAGES:
        _refuse(text)
    name = _match(_PAGE, text, page)
    if name.wanted and page.split("/")[2] == "tree":
        advice = "give owner/name:TYPE, or the page of one GGUF file"
        raise InputError(shown(text), "a folder of a model", "a model's page", advice)
    return name


def _match(spelling: re.Pattern[str], text: str, rest: str) -> Name:
    found = spelling.fullmatch(rest.strip("/"))
    if found is None:
        _refuse(text)
    revision, wanted = (part and unquote(part) for part in (found["revision"], found["wanted"]))
    return Name(text, _repo(found), revision, wanted)


def _repo(found: re.Match[str]) -> str:
    """The model's id. None ends in .git, but what `git clone` is given does."""
    return found["repo"].removesuffix(".git")


def _refuse(text: str) -> NoReturn:
    raise InputError(shown(text), "no name of a model", _EXPECTED)
