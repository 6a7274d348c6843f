"""Answers and files that no Hub gives: one line that says it, or the copy in the cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from starcoder import hub
from starcoder.hub import _download, _library
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, fails


def _answer(**changes: Any) -> bytes:
    whole = {"id": ID, "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}
    return json.dumps(whole | changes).encode()


def _siblings(*entries: Any) -> bytes:
    return _answer(siblings=list(entries))


STRANGE = {
    "a login page": b"<!doctype html><html>login</html>",
    "nothing": b"",
    "blanks": b" " * 5000,
    "an empty object": b"{}",
    "an empty list": b"[]",
    "a list": b'[{"sha": "x"}]',
    "null": b"null",
    "a number": b"5",
    "a text": b'"main"',
    "half an object": b'{"id": "owner/',
    "Latin-1": '{"id": "größe"}'.encode("latin-1"),
    "UTF-16": '{"id": "x"}'.encode("utf-16"),
    "NUL": b"\0" * 100,
    "nesting": b"[" * 100_000,
    "nesting in a key": b'{"sha": ' + b"[" * 100_000,
    "a huge number": b'{"sha": ' + b"9" * 100_000 + b"}",
    "no commit": _answer(sha=None),
    "a number for the commit": _answer(sha=5),
    "a branch for the commit": _answer(sha="main"),
    "a path for the commit": _answer(sha="../../../x"),
    "an object for the commit": _answer(sha={}),
    "no files": _answer(siblings=None),
    "a text for the files": _answer(siblings="config.json"),
    "numbers for the files": _siblings(1, 2),
    "an object for the files": _answer(siblings={"config.json": 1}),
    "texts for the files": _siblings("config.json"),
    "lists for the files": _siblings(["config.json"]),
    "null for the files": _siblings(None),
    "a file without a name": _siblings({"size": 1}),
    "a number for a name": _siblings({"rfilename": 5}),
    "null for a name": _siblings({"rfilename": None}),
    "a lone surrogate": b'{"sha": "\\ud800", "siblings": []}',
    "control characters": b'{"sha": "\\u001b[2J\\n", "siblings": []}',
}
ENTRIES: dict[str, dict[str, Any]] = {
    "no size": {"size": None},
    "a text for the size": {"size": "12"},
    "a fraction for the size": {"size": 1.5},
    "true for the size": {"size": True},
    "a negative size": {"size": -1},
    "more than there is on Earth": {"size": 1 << 70},
    "no hash": {"blobId": None},
    "a number for the hash": {"blobId": 5},
    "a path for the hash": {"blobId": "../../x"},
    "an upper case hash": {"blobId": "A" * 40},
    "a text for lfs": {"lfs": "yes", "size": None},
    "a list for lfs": {"lfs": [1], "blobId": None},
    "an empty lfs": {"lfs": {}},
    "a hash of lfs that is none": {"lfs": {"sha256": "x", "size": 1}},
    "no size in lfs": {"lfs": {"sha256": "a" * 64}},
}


@pytest.mark.parametrize("raw", STRANGE.values(), ids=STRANGE)
def test_an_answer_that_no_hub_gives_is_one_line(fake: FakeHub, raw: bytes) -> None:
    fake.raw = raw
    fails(ID, "expected an answer as the Hub gives it", "check the proxy and HF_ENDPOINT")


@pytest.mark.parametrize("change", ENTRIES.values(), ids=ENTRIES)
def test_a_strange_file_in_the_list_is_one_line(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole = served.info()
    siblings = [entry | change for entry in whole["siblings"]]
    monkeypatch.setattr(served, "info", lambda: whole | {"siblings": siblings})
    fails(ID, "expected an answer as the Hub gives it")


def test_a_model_in_the_cache_serves_through_any_answer(
    served: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    path = hub.resolve(ID)
    for served.raw in STRANGE.values():
        caplog.clear()
        with caplog.at_level(logging.WARNING, "starcoder"):
            assert hub.resolve(ID) == path
        assert "the copy in the cache, of commit 0123456789ab, is used" in caplog.messages[-1]


def test_an_answer_without_end_is_left(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_MAX_ANSWER", 1 << 20)
    fake.raw = b" " * (8 << 20)
    fails("an answer of more than 1 MiB")


# ------------------------------------------------------------------------------------------------
# Files that are not what was said


def test_a_body_longer_than_stated_is_left_at_once(served: FakeHub, tmp_path: Path) -> None:
    served.endless = True
    fails("more than the", "bytes that the Hub states, for config.json")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_large_files_come_in_parts(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "_MOST", 30_000)
    path = hub.resolve(ID)
    assert "bytes=30000-59999" in served.ranges
    for name, raw in served.files.items():
        assert (path / name).read_bytes() == raw


def test_the_token_stays_with_the_hub(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    served.token = "hf_secret"
    served.store = served.url.replace("127.0.0.1", "localhost")
    served.cut_after, served.cuts = 10_000, 1
    path = hub.resolve(ID)
    for name, raw in served.files.items():
        assert (path / name).read_bytes() == raw
    assert set(served.tokens) == {None}


def test_a_partial_file_that_is_too_long_is_begun_anew_whatever_happens(
    served: FakeHub, tmp_path: Path
) -> None:
    from tests.helpers.fake_hub import folder_of

    path = hub.resolve(ID)
    for blob in (folder_of(tmp_path) / "blobs").iterdir():
        blob.rename(blob.with_name(f"{blob.name}.partial"))
        with blob.with_name(f"{blob.name}.partial").open("ab") as file:
            file.write(b"more")
    served.cut_after, served.cuts = 2_000, 3
    assert hub.resolve(ID) == path
    for name, raw in served.files.items():
        assert (path / name).read_bytes() == raw


def test_a_server_without_ranges_begins_anew(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.cut_after, served.cuts, served.knows_ranges = 10_000, 2, False
    path = hub.resolve(ID)
    for name, raw in served.files.items():
        assert (path / name).read_bytes() == raw
