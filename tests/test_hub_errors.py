"""Whatever settings, networks and names do: one line that says it, or the copy in the cache."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from starcoder import hub
from starcoder.errors import InputError
from tests.helpers.fake_hub import ID, FakeHub, fails, python


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A session of the library that was made under this test's settings, and none after it."""
    from huggingface_hub import utils

    close: Any = getattr(utils, "close_session", None) or vars(utils)["_http"].reset_sessions
    close()
    yield
    monkeypatch.undo()
    close()


# ------------------------------------------------------------------------------------------------
# Settings and networks


_RESOLVE_BOTH = """
import sys
from starcoder import InputError, hub
try:
    hub.resolve("owner/none")
except InputError as error:
    print(error)
print(hub.resolve(sys.argv[1]))
"""


SETTINGS = {
    "a SOCKS proxy": {"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""},
    "a proxy that is not there": {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""},
    "a token that is not ASCII": {"HF_TOKEN": "größe"},
    "an endpoint with half a bracket": {"HF_ENDPOINT": "http://[::1"},
    "an endpoint without a scheme": {"HF_ENDPOINT": "127.0.0.1:9"},
    "an endpoint with a strange port": {"HF_ENDPOINT": "http://127.0.0.1:port"},
    "an endpoint of another scheme": {"HF_ENDPOINT": "ftp://127.0.0.1"},
    "a host that does not exist": {"HF_ENDPOINT": "http://hub.invalid"},
    "a server without certificates": {"HF_ENDPOINT": "https"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_keep_from_the_hub_are_one_line_or_the_cache(
    served: FakeHub, tmp_path: Path, settings: dict[str, str]
) -> None:
    path = hub.resolve(ID)
    if settings.get("HF_ENDPOINT") == "https":
        settings = {"HF_ENDPOINT": served.url.replace("http:", "https:")}
    cache = str(tmp_path / "cache")
    result = python(served, tmp_path, "-c", _RESOLVE_BOTH, ID, HF_HUB_CACHE=cache, **settings)
    assert result.returncode == 0, result.stderr
    line, used = result.stdout.splitlines()
    assert re.match("owner/none: (found|no such path, no copy in the cache, and no) ", line)
    assert used == str(path)
    assert result.stderr.count("the copy in the cache, of commit 0123456789ab, is used") == 1


def test_a_silent_hub_is_given_up(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        fails("no answer from the Hub", "timed out", "expected a file, a directory or a model")


@pytest.mark.parametrize("status", [400, 407, 408, 418, 429, 500, 502, 503, 504, 302, 204])
def test_a_refusal_serves_from_the_cache_or_is_one_line(served: FakeHub, status: int) -> None:
    served.refuse = status, ""
    fails(f"the answer {status} from the Hub")
    served.refuse = None
    path = hub.resolve(ID)
    served.refuse = status, ""
    assert hub.resolve(ID) == path


def test_a_server_that_stumbles_is_asked_again(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.fake_hub import Handler

    send, failures = Handler.send_file, iter([True, True, False, True])

    def stumble(handler: Handler, raw: bytes) -> None:
        if next(failures, False):
            handler.answer(503, {})
        else:
            send(handler, raw)

    monkeypatch.setattr(Handler, "send_file", stumble)
    assert hub.resolve(ID).is_dir()


def test_anything_else_that_a_library_raises_is_one_line(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import utils

    class StrangeError(Exception):
        pass

    def fail() -> Any:
        raise StrangeError("line one\nline two \x1b[2J")

    monkeypatch.setattr(utils, "get_session", fail)
    fails("no answer from the Hub (line one line two")


def test_ctrl_c_stays_ctrl_c(served: FakeHub, tmp_path: Path) -> None:
    class Interrupt:
        def start(self, total: int) -> None:
            pass

        def advance(self, n: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.resolve(ID, None, Interrupt())
    assert len(list(tmp_path.rglob("*.partial"))) == 1
    assert hub.resolve(ID).is_dir()


# ------------------------------------------------------------------------------------------------
# Causes met earlier, and names that were meant as paths


def test_a_mistyped_path_is_told_as_that(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    fails("models/x: no such path, and no such model on the Hub", name="models/x")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = fails("models/x: no such path, no copy in the cache, and no answer", name="models/x")
    assert "expected a file, a directory or a model on the Hub" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails("no such path, no copy in the cache, and HF_HUB_OFFLINE set", name="models/x")


def test_what_is_in_the_cache_and_what_is_not_is_said_with_the_reason(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    path = hub.resolve(ID)
    for place in (path / "model.safetensors", *(path.parents[1] / "blobs").iterdir()):
        if place.name == "model.safetensors" or len(place.name) == 64:
            place.unlink()
    words = "config.json and tokenizer.json in the cache, but no weights (model.safetensors)"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails(words, "and no answer from the Hub (Connection refused)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fails() == (
        f"{ID}: found config.json and tokenizer.json in the cache, but no weights "
        "(model.safetensors), and HF_HUB_OFFLINE set, expected a file, a directory or a model on "
        "the Hub; check the name, or unset HF_HUB_OFFLINE to download it"
    )  # as docs/hub.md has it


def test_a_mistyped_path_into_a_folder_is_advised_on_as_a_path(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    line = fails("no such path, and no such model", name="models/x")
    assert (
        line.partition("; ")[2] == "check the spelling of the path, or it is private: set HF_TOKEN"
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fails(name="models/x").endswith("; check the spelling of the path")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fails(name="models/x").endswith("; check the spelling of the path")


def test_a_login_page_is_no_matter_for_a_mistyped_path(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.raw = b"<html>login</html>"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    line = fails("no such path, and no JSON in the answer")
    assert line.endswith("; check the spelling of the path")


def test_offline_the_revisions_in_the_cache_are_named_where_another_is_asked_for(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.resolve(ID)
    assert "in the cache" not in fails("no revision 'v7'", revision="v7")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = "found a copy of main in the cache, but none of v7, and HF_HUB_OFFLINE set"
    fails(words, revision="v7")
    fails(words, name=f"{ID}@v7")


def test_an_empty_repository_is_told_as_that(fake: FakeHub) -> None:
    assert "proxy" not in fails("found an empty repository")


def test_offline_asks_nobody(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    path = hub.resolve(ID)
    served.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve(ID) == path
    fails("HF_HUB_OFFLINE", revision="v2")
    assert served.requests == []


@pytest.mark.parametrize("source", [None, 5, 1.5, [], {}, object(), ("a", "b"), True])
def test_what_is_no_name_is_one_line(source: Any) -> None:
    with pytest.raises(InputError, match="a value of type"):
        hub.resolve(source)


def test_paths_of_any_kind_are_paths(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert hub.resolve(str(file)) == hub.resolve(bytes(file)) == hub.resolve(file) == file
    odd = tmp_path / "\udcff.gguf"
    assert hub.resolve(bytes(tmp_path) + b"/\xff.gguf") == odd
    assert hub.resolve("x\0y") == Path("x\0y")
    fails("an empty name", name="")
