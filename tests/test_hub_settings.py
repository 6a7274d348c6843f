"""A wrong setting is told by its name, and not as a network that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fake_hub import ID, FakeHub, python

_RESOLVE = """
import sys
from starcoder import InputError, hub
try:
    print(hub.resolve(sys.argv[1]))
except InputError as error:
    print(error)
"""

# In the place of FILE comes the path of a file.
WRONG = {
    "a timeout that is no number": ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "a positive number"),
    "a timeout below zero": ("HF_HUB_DOWNLOAD_TIMEOUT", "-5", "a positive number"),
    "an endpoint that is no URL": ("HF_ENDPOINT", "foo", "a URL as https://HOST"),
    "an endpoint without a scheme": ("HF_ENDPOINT", "127.0.0.1:9", "a URL as https://HOST"),
    "an endpoint with half a bracket": ("HF_ENDPOINT", "http://[::1", "a URL as https://HOST"),
    "a file for a home": ("HF_HOME", "FILE", "a folder"),
    "a file for a cache": ("HF_HUB_CACHE", "FILE", "a folder"),
}


def resolve(served: FakeHub, tmp_path: Path, **settings: str) -> str:
    result = python(served, tmp_path, "-c", _RESOLVE, ID, **settings)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(("name", "value", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(
    served: FakeHub, tmp_path: Path, name: str, value: str, expected: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    value = value.replace("FILE", str(file))
    line = resolve(served, tmp_path, **{name: value})
    advice = f"set {name} to one, or unset it"
    assert line == f"{ID}: found {name}={value}, expected {expected}; {advice}"


def test_certificates_that_are_not_there_are_named_if_they_are_looked_for(
    served: FakeHub, tmp_path: Path
) -> None:
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # of httpx, of requests
    for endpoint in (served.url.replace("http:", "https:"), served.url):
        nope = dict.fromkeys(names, "/nope")
        line = resolve(served, tmp_path, HF_ENDPOINT=endpoint, **nope)
        named = any(f"found {name}=/nope, expected certificates" in line for name in names)
        assert named or line.endswith(f"snapshots/{served.commit}"), line
        assert named or endpoint == served.url


def test_a_file_without_certificates_is_named(served: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    empty = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(tmp_path / "empty.pem"))
    endpoint = served.url.replace("http:", "https:")
    line = resolve(served, tmp_path, HF_ENDPOINT=endpoint, **empty)
    assert any(f"found {name}={value}, expected certif" in line for name, value in empty.items())


def test_a_proxy_of_an_unknown_scheme_is_named(served: FakeHub, tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": "foo://x", "http_proxy": "foo://x", "NO_PROXY": "", "no_proxy": ""}
    line = resolve(served, tmp_path, **proxy)
    assert line.endswith("; set HTTP_PROXY to one, or unset it") or "http_proxy=foo://x" in line
    assert "expected a proxy as http://HOST:PORT" in line


def test_a_wrong_setting_that_nobody_reads_is_in_nobody_s_way(
    served: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    unread = {"SSL_CERT_DIR": "/nope", "HF_SOMETHING": "abc", "HF_HUB_CACHE": str(tmp_path / "c")}
    line = resolve(served, tmp_path, HF_HOME=str(tmp_path / "file"), HF_TOKEN="hf_x", **unread)
    assert line.startswith(str(tmp_path / "c")), line
