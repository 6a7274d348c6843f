"""What we use of huggingface_hub: its settings, and its session for HTTP with the user's token.

Only what its documentation names and every version from 0.34 on has: they differ in what they are
built on (requests, httpx, httpx2), in how they download, and in what they raise. So the two
questions that there are, what a model has and the bytes of a file, are asked here; whatever goes
wrong in the layers below is one `HubError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

__all__ = [
    *("STRANGE", "UNHEARD", "UNKNOWN", "Body", "HubError", "ask", "cache_folder", "hosts"),
    *("is_offline", "open_file", "reason", "strange", "timeout"),
]

_CHUNK = 1 << 16
_MAX_ANSWER = 64 << 20  # bytes about a model; those with a thousand files have less than one
_TIMEOUT = 10.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others the next time

# Causes that leave open whether the Hub has the model: no answer, or another's; the last says
# that it has not.
UNHEARD, STRANGE, UNKNOWN = "unheard", "strange", "unknown"


class HubError(Exception):
    """What kept us from a model, in the words of `InputError`."""

    def __init__(
        self,
        found: str,
        expected: str = "the model's files",
        advice: str = "",
        *,
        again: bool = False,
        cause: str = "",
    ) -> None:
        super().__init__(found)
        self.found, self.expected, self.advice = found, expected, advice
        self.again = again  # it may be different the next time
        self.cause = cause


class Body(NamedTuple):
    """What came: the part that was asked for; or the whole file, where a server has no ranges."""

    is_part: bool
    chunks: Iterator[bytes]


# ------------------------------------------------------------------------------------------------
# Settings


def cache_folder() -> Path:
    """Where models are kept, also where the library cannot be loaded: HF_ENDPOINT can keep it."""
    try:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    except Exception:
        env = os.environ
        base = env.get("XDG_CACHE_HOME") or "~/.cache"
        home = env.get("HF_HOME") or os.path.join(base, "huggingface")
        return Path(os.path.expanduser(env.get("HF_HUB_CACHE") or os.path.join(home, "hub")))


def is_offline() -> bool:
    """Whether the user forbids to ask."""
    try:
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)
    except Exception:
        return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def timeout() -> float:
    """Seconds that a server may be silent."""
    try:
        from huggingface_hub import constants

        return float(constants.HF_HUB_DOWNLOAD_TIMEOUT) or _TIMEOUT
    except Exception:
        return _TIMEOUT


def hosts() -> set[str]:
    """Names of the Hub in URLs, with the port where one is given."""
    try:
        from huggingface_hub import constants

        urls = (constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_HOME)
        known = {urlsplit(url).netloc.rpartition("@")[2].lower() for url in urls}
        return (known | set(getattr(constants, "HF_URL_HOSTS", ()))) - {""}
    except Exception:
        return {"huggingface.co", "hf.co"}  # a wrong setting can keep the library from loading


# ------------------------------------------------------------------------------------------------
# Questions


def ask(repo: str, revision: str | None) -> Any:
    """What the Hub says of a model: the JSON of its answer, whatever that is.

    Raises:
        HubError: no answer, a refusal, or no JSON.
    """
    place = f"/revision/{quote(revision, safe='')}" if revision else ""
    url = f"/api/models/{repo}{place}?blobs=true"
    with _get(url, {}, revision) as (_, _, chunks):
        raw = bytearray()
        for chunk in chunks:
            raw += chunk
            if len(raw) > _MAX_ANSWER:
                raise strange(f"an answer of more than {_MAX_ANSWER >> 20} MiB")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        start = bytes(raw[:40]).decode("ascii", "replace")
        found = f"no JSON in the answer, but {start!r}" if start else "an empty answer"
        raise strange(found) from None


@contextmanager
def open_file(repo: str, commit: str, name: str, part: tuple[int, int] | None) -> Iterator[Body]:
    """The bytes of a file, or of a part of it: from the first of two places to before the second.

    Raises:
        HubError: no answer, or a refusal; and from `chunks`, a connection that breaks.
    """
    headers = {"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {}
    with _get(f"/{repo}/resolve/{commit}/{quote(name)}", headers) as (status, answered, chunks):
        is_part = part is not None and status == 206
        if (
            part
            and is_part
            and not answered.get("Content-Range", "").startswith(f"bytes {part[0]}-")
        ):
            raise HubError("a part of the file that was not asked for", again=True)
        yield Body(is_part, chunks)


@contextmanager
def _get(
    path: str, headers: dict[str, str], revision: str | None = None
) -> Iterator[tuple[int, Mapping[str, str], Any]]:
    """Status, headers and body of an answer that is no refusal."""
    with _as_hub_error():
        from huggingface_hub import constants

        opened = _request(constants.ENDPOINT + path, headers)
        status, answered, chunks = opened.__enter__()
    try:
        if status not in (200, 206):
            raise _refusal(status, answered, revision)
        yield status, answered, _guarded(chunks)
    finally:
        with _as_hub_error():
            opened.__exit__(None, None, None)


@contextmanager
def _request(url: str, headers: dict[str, str]) -> Iterator[tuple[int, Mapping[str, str], Any]]:
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
    token = headers.get("authorization", "")
    if not (token.isascii() and token.isprintable()):
        found = "a token with other letters than ASCII"
        raise HubError(found, "one as the Hub gives it", "check HF_TOKEN and hf auth login")
    if callable(getattr(session, "stream", None)):  # httpx, since version 1
        options = {"headers": headers, "timeout": timeout(), "follow_redirects": True}
        with session.stream("GET", url, **options) as answer:
            yield answer.status_code, answer.headers, answer.iter_bytes(_CHUNK)
    else:
        with session.get(url, headers=headers, timeout=timeout(), stream=True) as answer:
            yield answer.status_code, answer.headers, answer.iter_content(_CHUNK)


# ------------------------------------------------------------------------------------------------
# What goes wrong


@contextmanager
def _as_hub_error(what: str = "no answer from the Hub") -> Iterator[None]:
    """Whatever the layers below raise is no answer: their classes are many, and change."""
    try:
        yield
    except (HubError, MemoryError):
        raise
    except Exception as error:
        advice = "check the connection and the proxy"
        if "HF_ENDPOINT" in os.environ:
            advice += " and HF_ENDPOINT"
        found = f"{what} ({reason(error)})"
        advice += ", and try again"
        raise HubError(found, "", advice, again=True, cause=UNHEARD) from None


def _guarded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with _as_hub_error("a connection that broke"):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def reason(error: BaseException) -> str:
    """An error in a line: the system's own words, where a library has wrapped them in others."""
    first = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    told = first if isinstance(first, OSError) else error
    words = (getattr(told, "strerror", None) or str(told) or type(told).__name__).split()
    return "".join(c for c in " ".join(words)[:200] if c.isprintable())


def _refusal(status: int, headers: Mapping[str, str], revision: str | None) -> HubError:
    code, message = (headers.get(f"X-Error-{key}", "") for key in ("Code", "Message"))
    if code == "GatedRepo":
        advice = "accept the terms on the model's page and set HF_TOKEN"
        return HubError("a gated model", "one that your token may read", advice)
    if code == "RevisionNotFound":
        return HubError(f"no revision {revision!r}", "a branch, tag or commit")
    if code == "RepoNotFound" or (status == 401 and "credentials" not in message):
        advice = "or it is private: set HF_TOKEN"
        return HubError("no such model on the Hub", "an existing one", advice, cause=UNKNOWN)
    if "disabled" in message:
        return HubError("a model that the Hub has disabled")
    advice = "check HF_TOKEN" if status in (401, 403) else "try again later"
    again = status in _PASSING
    return HubError(f"the answer {status} from the Hub", advice=advice, again=again)


def strange(found: str) -> HubError:
    """An answer that no Hub gives: of a login page, a proxy, another server."""
    advice = "check the proxy and HF_ENDPOINT, or download the files yourself"
    return HubError(found, "an answer as the Hub gives it", advice, cause=STRANGE)
