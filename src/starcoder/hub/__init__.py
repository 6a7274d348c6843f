"""Models by their names on the Hub: files from there into the cache of huggingface_hub.

`_names` reads what the user wrote, `_choice` finds the files that are meant, `_download` brings
them, `_claim` says which process writes, `_cache` knows what is there and puts it in place,
`_library` is all we use of huggingface_hub, and `_settings` finds what is wrong of its settings.
Here is the order of things: whatever keeps us from the Hub, a whole copy in the cache serves;
without one, an error says what was missing, and what came between.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from starcoder import formats
from starcoder.errors import FormatError, InputError
from starcoder.hub import _cache, _library, _settings
from starcoder.hub._cache import HASH, Copy, File
from starcoder.hub._choice import UnfitError, choose
from starcoder.hub._download import Progress, fetch_all
from starcoder.hub._library import UNHEARD, UNKNOWN, HubError, reason, strange
from starcoder.hub._names import Name, parse, shown

__all__ = ["Found", "Progress", "find", "resolve"]

_log = logging.getLogger("starcoder")

_OFFLINE = HubError(
    "HF_HUB_OFFLINE set",
    "a model that was downloaded before",
    "check the name, or unset HF_HUB_OFFLINE to download it",
    cause=UNHEARD,
)


class Found(NamedTuple):
    """A model: where it is, and for one from the Hub its `owner/name` and commit."""

    path: Path
    repo: str | None = None
    commit: str | None = None


def resolve(
    source: str | bytes | os.PathLike[Any],
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of a model: `source` itself, or where the model of this name was put.

    What exists as a file or directory is never looked for on the Hub. The token of a gated or
    private model is taken from HF_TOKEN, or from where `hf auth login` left it. Files that are
    there already are not asked for again; one that broke off goes on where it was.

    >>> resolve("bigcode/tiny_starcoder_py")  # doctest: +SKIP
    PosixPath('.../models--bigcode--tiny_starcoder_py/snapshots/...')

    Args:
        source: a path; or `owner/name`, with `@revision` and with `:q4_0` or `:file.gguf` if need
            be; or the same after `hf://`; or the URL of a model's page.
        revision: a branch, tag or commit of a model on the Hub; by default its main branch.
        progress: is told of the bytes; by default a bar shows them on a terminal.

    Raises:
        InputError: no such model or revision, no permission, no network, no room, or files that
            are not what the Hub says they are.
        FormatError: its config.json says that it is no model of ours, before its weights come.
    """
    return find(source, revision, progress).path


def find(
    source: str | bytes | os.PathLike[Any],
    revision: str | None = None,
    progress: Progress | None = None,
) -> Found:
    """As `resolve`, with the model's id and commit."""
    name = parse(source, revision)
    if isinstance(name, Path):
        return Found(name)
    if _library.is_offline():
        return _from_cache(name, _OFFLINE)
    try:
        copy = _bring(name, progress)
    except (FormatError, MemoryError):
        raise
    except Exception as error:
        return _from_cache(name, _settings.blamed(error) or _as_hub_error(error))
    return Found(copy.path, name.repo, copy.commit)


def _bring(name: Name, progress: Progress | None) -> Copy:
    commit, listed = _listing(_library.ask(name.repo, name.revision))
    choice = choose(listed, name.wanted)
    files = [_file(file, listed[file]) for file in choice.names]
    folder = _cache.folder_of(name.repo)
    missing = [file for file in files if not _cache.has(folder, commit, file)]

    def before(file: File) -> None:
        """A directory that its config.json refuses is refused before anything else of it comes."""
        if choice.entry is None and file.name != "config.json":
            formats.check_config(_cache.link(folder, commit, files[:1]))

    if missing:
        fetch_all(name.repo, commit, folder / "blobs", missing, progress, before)
    path = _cache.link(folder, commit, files)
    _cache.note(folder, name, commit)
    return Copy(path / choice.entry if choice.entry else path, commit)


# ------------------------------------------------------------------------------------------------
# What the Hub says of a model


def _listing(answer: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """The commit, and what is said of each file."""
    if not isinstance(answer, dict):
        raise strange(f"a JSON {type(answer).__name__}")
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not (isinstance(commit, str) and HASH.fullmatch(commit)):
        raise strange(f"the commit {shown(repr(commit))[:80]}")
    if not isinstance(siblings, list):
        raise strange("no list of files")
    if not siblings:
        raise HubError("an empty repository", advice="check the name and the revision")
    files = {}
    for entry in siblings:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise strange(f"{shown(repr(entry))[:80]} in the list of files")
        files[name] = entry
    return commit, files


def _file(name: str, entry: dict[str, Any]) -> File:
    size, hashed, large = entry.get("size"), entry.get("blobId"), entry.get("lfs")
    if isinstance(large, dict):
        size, hashed = large.get("size"), large.get("sha256")
    if type(size) is not int or not 0 <= size < 1 << 60:
        raise strange(f"the size {shown(repr(size))[:80]} of {name}")
    if not (isinstance(hashed, str) and HASH.fullmatch(hashed)):
        raise strange(f"the hash {shown(repr(hashed))[:80]} of {name}")
    return File(name, size, hashed)


# ------------------------------------------------------------------------------------------------
# Without it


def _from_cache(name: Name, error: HubError) -> Found:
    """The copy in the cache; or, if there is none, an error that says all that was in the way."""
    if isinstance(error, UnfitError):
        raise _input_error(name, error, HubError(""))
    try:
        copy = _cache.find(name)
    except UnfitError as several:
        raise _input_error(name, several, HubError("")) from None
    except Exception as lack:
        raise _input_error(name, error, _as_hub_error(lack)) from None
    of = f"the copy in the cache, of commit {copy.commit[:12]}, is used"
    if error is not _OFFLINE:
        _log.warning("%s: %s; %s", shown(name.text), error.found, of)
    elif not copy.is_noted:
        _log.warning("%s: nothing says which commit is newest; %s", shown(name.text), of)
    return Found(copy.path, name.repo, copy.commit)


def _input_error(name: Name, error: HubError, lack: HubError) -> InputError:
    found, expected, advice = [error.found], error.expected, error.advice
    if error.cause == UNHEARD or (lack.found and lack.cause != UNKNOWN):
        found.insert(0, lack.found or "no copy in the cache")
    may_be_path = name.is_plain and os.path.isdir(name.repo.split("/")[0])
    if name.is_plain and (error.cause in (UNHEARD, UNKNOWN) or (may_be_path and error.cause)):
        expected = "a file, a directory or a model on the Hub"
        if not lack.found:  # of what is in the cache in part, it is clear what was meant
            found.insert(0, "no such path")
            if may_be_path:
                advice = "check the spelling of the path"
                advice += f", {error.advice}" if error.cause == UNKNOWN else ""
    *first, last = found
    line = f"{', '.join(first)}, and {last}" if first else last
    return InputError(shown(name.text), line, expected, advice)


def _as_hub_error(error: Exception) -> HubError:
    """Anything that was raised, in words."""
    if isinstance(error, HubError):
        return error
    found = reason(error)
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename or "").partition("/blobs/")[0]
        found += f" at {shown(place)}" if place else ""
        advice = "check its permissions and its room, or set HF_HOME elsewhere"
        return HubError(found, "a cache that can be written", advice)
    return HubError(f"{type(error).__name__}: {found}", "the model's files")
