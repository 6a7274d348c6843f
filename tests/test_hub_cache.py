"""The cache of the Hub as other programs, other versions and other file systems leave it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starcoder import hub
from starcoder.hub import _cache
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, fails, folder_of, is_whole

NEWER = "f" * 40


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    from huggingface_hub import constants

    return lambda is_offline: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)


# ------------------------------------------------------------------------------------------------
# What is there


def make_real(folder: Path) -> None:
    """A cache without links: each snapshot has the files themselves."""
    for link in (folder / "snapshots").rglob("*.*"):
        raw = link.read_bytes()
        link.unlink()
        link.write_bytes(raw)
    shutil.rmtree(folder / "blobs")


def test_files_in_place_of_links_are_used(
    served: FakeHub, tmp_path: Path, offline: Callable[[bool], None]
) -> None:
    path = hub.resolve(ID)
    make_real(folder_of(tmp_path))
    served.requests.clear()
    assert hub.resolve(ID) == path
    assert served.requests == [f"/api/models/{ID}"]
    offline(True)
    assert hub.resolve(ID) == path
    assert is_whole(path, tmp_path)


DAMAGED_REFS: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "blanks": b"  \n",
    "not UTF-8": b"\xff\xfe\x00",
    "another word": b"main",
    "a path": b"../../../etc/passwd",
    "a commit that is not there": b"a" * 40,
    "zeros": bytes(40),
}


@pytest.mark.parametrize("raw", DAMAGED_REFS.values(), ids=DAMAGED_REFS)
def test_without_a_good_reference_the_whole_copy_is_found(
    served: FakeHub,
    tmp_path: Path,
    offline: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raw: bytes | None,
) -> None:
    from huggingface_hub import constants

    path, ref = hub.resolve(ID), folder_of(tmp_path) / "refs" / "main"
    ref.unlink() if raw is None else ref.write_bytes(raw)
    offline(True)
    with caplog.at_level(logging.WARNING, "starcoder"):
        assert hub.resolve(ID) == hub.resolve(ID, "main") == hub.resolve(ID, COMMIT) == path
    assert "nothing says which commit is newest" in caplog.messages[0]
    fails("a copy of commit 0123456789ab in the cache, but none of v2", revision="v2")
    offline(False)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert hub.resolve(ID) == path
    assert hub.resolve(ID) == path
    assert ref.read_text() == COMMIT


def test_a_reference_to_half_a_copy_gives_way_to_a_whole_one(
    served: FakeHub, tmp_path: Path, offline: Callable[[bool], None]
) -> None:
    path, folder = hub.resolve(ID), folder_of(tmp_path)
    newer = folder / "snapshots" / NEWER
    newer.mkdir()
    (newer / "config.json").write_text("{}")
    (folder / "refs" / "main").write_text(NEWER)
    offline(True)
    assert hub.resolve(ID) == path
    shutil.rmtree(path)
    fails("config.json in the cache, but no tokenizer.json")


def test_a_layout_that_only_the_library_knows_is_asked_of_it(
    served: FakeHub, tmp_path: Path, offline: Callable[[bool], None]
) -> None:
    from huggingface_hub import HfApi

    path = hub.resolve(ID)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(path, elsewhere)
    shutil.rmtree(folder_of(tmp_path))
    offline(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "snapshot_download", lambda *_, **__: str(elsewhere))
        assert hub.resolve(ID) == elsewhere
    fails("no copy in the cache")


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
def test_a_blob_of_another_size_is_fetched_again(
    served: FakeHub, tmp_path: Path, size: int
) -> None:
    path = hub.resolve(ID)
    blobs = list((folder_of(tmp_path) / "blobs").iterdir())
    for blob in blobs:
        blob.write_bytes(bytes(size))
    assert hub.resolve(ID) == path
    assert is_whole(path, tmp_path)
    assert set((folder_of(tmp_path) / "blobs").iterdir()) == set(blobs)


def test_a_file_of_another_size_in_the_place_of_a_link_is_replaced(
    served: FakeHub, tmp_path: Path
) -> None:
    path = hub.resolve(ID)
    make_real(folder_of(tmp_path))
    (path / "model.safetensors").write_bytes(b"half")
    assert hub.resolve(ID) == path
    assert is_whole(path, tmp_path)


def test_links_that_lead_nowhere_are_mended(served: FakeHub, tmp_path: Path) -> None:
    path = hub.resolve(ID)
    for link in path.iterdir():
        link.unlink()
        link.symlink_to("nowhere")
    assert hub.resolve(ID) == path
    assert is_whole(path, tmp_path)


# ------------------------------------------------------------------------------------------------
# What cannot be written


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every change fail as on a file system that is mounted read-only, for root too."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", "somewhere")

    def start() -> None:
        for name in ("mkdir", "symlink", "link", "rename", "replace", "unlink", "utime"):
            monkeypatch.setattr(os, name, refuse)
        for name in ("mkdir", "symlink_to", "write_text", "unlink", "rename"):
            monkeypatch.setattr(Path, name, refuse)

    return start


@pytest.mark.parametrize("case", ["whole", "no refs", "older refs", "real files"])
def test_a_read_only_cache_serves(
    served: FakeHub,
    tmp_path: Path,
    offline: Callable[[bool], None],
    read_only: Callable[[], None],
    case: str,
) -> None:
    path, folder = hub.resolve(ID), folder_of(tmp_path)
    if case == "no refs":
        shutil.rmtree(folder / "refs")
    if case == "older refs":
        (folder / "refs" / "main").write_text("a" * 40)
    if case == "real files":
        make_real(folder)
    with pytest.MonkeyPatch.context() as patch:
        read_only()
        assert hub.resolve(ID) == path
        offline(True)
        assert hub.resolve(ID) == path
        patch.undo()
    assert is_whole(path, tmp_path)


def test_a_read_only_cache_of_an_older_commit_with_the_same_files_is_used_as_it_is(
    served: FakeHub,
    read_only: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = hub.resolve(ID)
    served.commit = NEWER
    read_only()
    with caplog.at_level(logging.WARNING, "starcoder"):
        assert hub.resolve(ID) == path
    assert not caplog.messages


def test_a_read_only_cache_of_other_files_is_used_with_a_notice(
    served: FakeHub,
    read_only: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = hub.resolve(ID)
    served.commit = NEWER
    served.files["generation_config.json"] = b"{ }"
    read_only()
    with caplog.at_level(logging.WARNING, "starcoder"):
        assert hub.resolve(ID) == path
    assert caplog.messages == [
        f"{ID}: Read-only file system at somewhere; "
        "the copy in the cache, of commit 0123456789ab, is used"
    ]


def test_a_cache_that_cannot_be_made_is_told_as_that(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    line = fails(f"at {tmp_path / 'file'}", "expected a cache that can be written", "set HF_HOME")
    assert "network" not in line


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_system_without_links_holds_the_files_themselves(
    served: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    hard_links: bool,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "symlink", refuse)
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    path = hub.resolve(ID)
    assert is_whole(path, tmp_path)
    served.requests.clear()
    assert hub.resolve(ID) == path
    assert served.requests == [f"/api/models/{ID}"]


def test_links_may_appear_meanwhile(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = _cache._link

    def be_late(blob: Path, place: Path) -> None:
        make(blob, place)
        make(blob, place)  # another process did the same

    monkeypatch.setattr(_cache, "_link", be_late)
    assert is_whole(hub.resolve(ID), tmp_path)
    assert not list(tmp_path.rglob("*.starcoder-tmp"))
