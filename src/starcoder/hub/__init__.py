"""Models by their Hub id, `owner/name`: files from the Hub into the cache of huggingface_hub.

The library asks and transfers; this module chooses the files and says in one line what went wrong;
`_cache` resumes, checks and puts in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from starcoder.errors import InputError
from starcoder.hub._cache import HASH, File, Progress, cached, check_room, fetch, link, note

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

__all__ = ["Progress", "resolve"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]{0,254}(/\w[\w.-]{0,254}){0,4}", re.ASCII)
_FILE_SUFFIXES = (".gguf", ".bin", ".safetensors", ".json")  # a path, even if nothing is there

_NEEDED = ("config.json", "tokenizer.json")
_WANTED = (*_NEEDED, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_WEIGHTS = (  # the first kind that a model has
    re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin(\.index\.json)?"),
)
_TIMEOUT = 10  # seconds until the Hub must answer


def resolve(
    source: str | os.PathLike[str], revision: str | None = None, progress: Progress | None = None
) -> Path:
    """The path of a model: `source` itself, or where the model of this Hub id was put.

    What exists as a file or directory is never looked for on the Hub. The token of a gated or
    private model is taken from HF_TOKEN, or from where `hf auth login` left it. Files that are
    there already are not asked for again; one that broke off goes on where it was.

    >>> resolve("bigcode/tiny_starcoder_py")  # doctest: +SKIP
    PosixPath('.../models--bigcode--tiny_starcoder_py/snapshots/...')

    Args:
        source: a path, or `owner/name`.
        revision: a branch, tag or commit of a Hub id; by default its main branch.
        progress: is told of the bytes; by default the library shows a bar on a terminal.

    Raises:
        InputError: no such model or revision, no permission, no network, no room, or files that
            are not what the Hub says they are.
    """
    path, name = Path(source), os.fspath(source)
    if os.path.exists(path) or not _ID.fullmatch(name) or path.suffix in _FILE_SUFFIXES:
        if revision is not None:
            advice = "leave --revision out, or give owner/name"
            raise InputError("revision", f"{revision!r} of a path", "a Hub id", advice)
        return path
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError("revision", repr(revision), "a branch, tag or commit")
    with _typed_errors(name, revision):
        return _download(name, revision, progress)


# ------------------------------------------------------------------------------------------------
# What a model has


def _download(repo: str, revision: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except _transport_errors():
        path = cached(folder, revision or "main")
        if path is None:
            raise
        return path
    commit = info.sha or ""
    files = [_checked(repo, sibling) for sibling in _choose(repo, info)]
    if not HASH.fullmatch(commit):
        _strange(repo, f"the commit {commit!r}"[:80])
    missing = [file for file in files if not (folder / "blobs" / file.hash).exists()]
    n_bytes = check_room(repo, folder, missing)
    if progress is not None and missing:
        progress.start(n_bytes)
    for file in missing:
        fetch(repo, commit, folder / "blobs", file, progress)
    path = link(folder, commit, files)
    note(folder / "refs" / (revision or "main"), commit)
    return path


def _choose(repo: str, info: ModelInfo) -> list[RepoSibling]:
    """The files to read a model from: descriptions, and weights of one kind."""
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    kinds = [[name for name in siblings if kind.fullmatch(name)] for kind in _WEIGHTS]
    weights = next(filter(None, kinds), [])
    lacking = [name for name in _NEEDED if name not in siblings]
    if lacking or not weights:
        found = f"no {(lacking or ['weights'])[0]}"
        expected = "config.json, tokenizer.json and weights in safetensors or PyTorch's format"
        raise InputError(repo, found, expected, "of another format, download the file itself")
    return [siblings[name] for name in (*_WANTED, *weights) if name in siblings]


def _checked(repo: str, sibling: RepoSibling) -> File:
    name, size, hashed = sibling.rfilename, sibling.size, sibling.blob_id
    if sibling.lfs is not None:
        size, hashed = sibling.lfs.size, sibling.lfs.sha256
    if type(size) is not int or size < 0 or not HASH.fullmatch(str(hashed)):
        _strange(repo, f"size {size} and hash {hashed} of {name}"[:200])
    return File(name, size, str(hashed))


def _strange(repo: str, found: str) -> NoReturn:
    advice = "check HF_ENDPOINT, or download the files yourself"
    raise InputError(repo, found, "an answer as the Hub gives it", advice)


# ------------------------------------------------------------------------------------------------
# Errors


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the library raises without an answer: of its transport (httpx, httpx2), or OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*(c for c in HfHubHTTPError.__bases__ if issubclass(c, Exception)), OSError)


@contextmanager
def _typed_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turns whatever the library raises into an InputError of one line."""
    from huggingface_hub import errors

    where, advice = repo, ""
    expected = "a file, a directory or a model on the Hub"
    try:
        yield
        return
    except errors.GatedRepoError:
        found, expected = "a gated model", "one that your token may read"
        advice = "accept the terms on the model's page and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        found, advice = (
            "no such path, and no such model on the Hub",
            "or it is private: set HF_TOKEN",
        )
    except errors.RevisionNotFoundError:
        found, expected = f"no revision {revision!r}", "a branch, tag or commit"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "none")
        found, expected = f"the answer {status} from the Hub", "the model's files"
        advice = "check HF_TOKEN" if status in (401, 403) else "try again later; it resumes"
    except errors.OfflineModeIsEnabled:
        found, expected = "no copy, and HF_HUB_OFFLINE set", "a model that was downloaded before"
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0][:160]
        found, expected = reason, "a network and room on the disk"
        advice = "what came is kept; try again"
    except _transport_errors() as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        found, expected = f"no answer ({reason})", "a network"
        advice = "check the connection and try again; it resumes"
    raise InputError(where, found, expected, advice)
