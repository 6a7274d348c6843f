"""What is set for huggingface_hub in the environment, where that is why it cannot be asked.

The layers below tell a wrong setting as a network that is not there. Here it is told by its name;
but only when something failed, as a setting that is not read does no harm.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from starcoder.hub._library import STRANGE, HubError
from starcoder.hub._names import shown

__all__ = ["blamed"]

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_FOLDERS = ("HF_HUB_CACHE", "HF_HOME")


def blamed(error: BaseException) -> HubError | None:
    """The setting that an error comes from, in words; None: from none that we know."""
    errors = list(_chain(error))
    for name, value in os.environ.items():
        if value and (expected := _expected(name, value, errors)):
            advice = f"set {name} to one, or unset it"
            return HubError(f"{name}={shown(value)}", expected, advice, cause=STRANGE)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _expected(name: str, value: str, errors: list[BaseException]) -> str | None:
    """What a variable should have been, if one of the errors comes from what it is."""
    place, texts = os.path.expanduser(value), [str(error) for error in errors]

    def came(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in errors)

    if name == "HF_ENDPOINT" and not _is_url(value):
        return "a URL as https://HOST"
    if name in _CERTIFICATES and not os.path.exists(place):
        is_named = any(value in text for text in texts)
        return "certificates that exist" if is_named or came(FileNotFoundError) else None
    if name in _CERTIFICATES and came(ssl.SSLError) and not _has_certificates(place):
        return "certificates"
    if name in _FOLDERS and os.path.exists(place) and not os.path.isdir(place):
        return "a folder" if came(NotADirectoryError, FileExistsError) else None
    if name.upper().endswith("_PROXY") and _names_scheme(value, texts):
        return "a proxy as http://HOST:PORT"
    # The library reads all its numbers when it is loaded.
    is_read = name.startswith("HF_") and came(ValueError) and any(repr(value) in t for t in texts)
    if is_read or (name == "HF_HUB_DOWNLOAD_TIMEOUT" and value.strip().startswith("-")):
        return "a positive number"
    return None


def _names_scheme(proxy: str, texts: list[str]) -> bool:
    """Whether an error is about a proxy like this: httpx names it, requests its scheme alone."""
    scheme = f"unsupported scheme {proxy.partition(':')[0]}"
    return any(proxy in text or scheme in text for text in texts)


def _has_certificates(place: str) -> bool:
    with suppress(OSError):
        return os.path.isdir(place) or b"-----BEGIN" in Path(place).read_bytes()
    return False


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
