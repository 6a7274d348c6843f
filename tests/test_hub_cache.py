"""The cache as other programs, other versions and other file systems leave it; several at once."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from starcoder import formats, hub
from starcoder.hub import _cache, _claim, _download
from starcoder.hub._claim import Claim, LostError, Queue
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, fails, folder_of, serving
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel

NEWER = "f" * 40


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


@pytest.fixture
def served(fake: FakeHub, tmp_path: Path, tiny: TinyModel) -> FakeHub:
    fake.add(write_hf(tmp_path / "served", tiny))
    return fake


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    from huggingface_hub import constants

    return lambda is_offline: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)


def is_whole(path: Path, tmp_path: Path) -> bool:
    return formats.read(path) == formats.read(tmp_path / "served")


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


# ------------------------------------------------------------------------------------------------
# Claims


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path, "name")


def claimed(folder: Path, machine: str, pid: int, time: int = 1) -> Path:
    path = folder / f"name.{time:016x}-{machine}-{pid}-{'0' * 8}.partial"
    path.write_bytes(b"abc")
    return path


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_living_claim_is_waited_for(queue: Queue, tmp_path: Path) -> None:
    claim = queue.take()
    assert claim is not None
    assert Queue(tmp_path, "name").take() is None
    assert Queue(tmp_path, "other").take() is not None
    queue.give_back(claim)
    assert Queue(tmp_path, "name").take() is not None


def test_the_earlier_of_two_claims_goes_on(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, rivals = Queue._look, [tmp_path / "none"]

    def look_too_early(self: Queue) -> Any:
        found = look(self)
        if rivals.pop():  # the other begins between our look and our claim
            rivals.append(claimed(tmp_path, "0" * 8, 1))
        return found

    monkeypatch.setattr(Queue, "_look", look_too_early)
    rivals.append(tmp_path)
    assert queue.take() is None
    assert [p.name for p in tmp_path.iterdir()] == [f"name.{1:016x}-{'0' * 8}-1-{'0' * 8}.partial"]


def test_what_a_process_left_is_taken_over_at_once(queue: Queue, tmp_path: Path) -> None:
    left = claimed(tmp_path, _claim._machine(), ended_pid())
    claim = queue.take()
    assert claim is not None
    assert claim.path.read_bytes() == b"abc"
    assert not left.exists()


def test_the_most_that_is_left_is_taken_and_the_rest_cleared(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "name.partial").write_bytes(b"ab")
    claimed(tmp_path, _claim._machine(), ended_pid())
    claim = queue.take()
    assert claim is not None
    assert claim.path.read_bytes() == b"abc"
    queue.clear()
    assert list(tmp_path.iterdir()) == [claim.path]


def test_a_claim_of_another_machine_counts_until_it_gives_no_sign(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("starcoder.hub._claim.time.monotonic", lambda: now[0])
    other = claimed(tmp_path, "0" * 8, 1)
    for _ in range(5):
        now[0] += 30
        os.utime(other, ns=(0, other.stat().st_mtime_ns + 1))
        assert queue.take() is None
    now[0] += 100
    assert queue.take() is not None
    assert not other.exists()


def test_an_old_claim_of_another_machine_is_not_waited_for(queue: Queue, tmp_path: Path) -> None:
    os.utime(claimed(tmp_path, "0" * 8, 1), (1, 1))
    assert queue.take() is not None


def test_who_was_thought_gone_finds_out_and_deletes_nothing(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim, "_BEAT", 0.0)
    first = queue.take()
    assert first is not None
    first.beat()
    first.path.write_bytes(b"abc")
    monkeypatch.setattr(Queue, "_is_living", lambda *_: False)
    second = queue.take()
    assert second is not None
    with pytest.raises(LostError):
        first.beat()
    queue.give_back(first)
    assert second.path.read_bytes() == b"abc"


def test_a_file_that_was_taken_over_is_waited_for(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, losses = Claim.beat, [True]

    def lose(claim: Claim) -> None:
        if losses and losses.pop():
            os.rename(claim.path, claim.path.with_name(claim.path.name.split(".")[0] + ".partial"))
            raise LostError
        beat(claim)

    monkeypatch.setattr(Claim, "beat", lose)
    assert is_whole(hub.resolve(ID), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_another_process_may_bring_the_file(
    served: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = hub.resolve(ID)
    (blob,) = (p for p in (folder_of(tmp_path) / "blobs").iterdir() if len(p.name) == 64)
    raw = blob.read_bytes()
    blob.unlink()
    name = f"{blob.name}.{1:016x}-{'0' * 8}-1-{'0' * 8}.partial"
    (blob.parent / name).write_bytes(raw[:100])
    monkeypatch.setattr(_download, "_SAY", 0.0)
    monkeypatch.setattr("starcoder.hub._download.time.sleep", lambda _: blob.write_bytes(raw))
    with caplog.at_level(logging.WARNING, "starcoder"):
        assert hub.resolve(ID) == path
    assert "model.safetensors: waiting for another process" in caplog.messages[0]


# ------------------------------------------------------------------------------------------------
# Several at once

_LOCKS = {
    "work": "",
    "do nothing": "import fcntl; fcntl.flock = fcntl.lockf = lambda *_: None",
    "are not there": "import fcntl; fcntl.flock = fcntl.lockf = no(errno.ENOLCK)",
    "are not known": "import fcntl; fcntl.flock = fcntl.lockf = no(errno.ENOSYS)",
}
_RESOLVE = """
import errno, sys
def no(number):
    def refuse(*_): raise OSError(number, "no locks")
    return refuse
{locks}
from starcoder import hub
sys.stdin.readline()
print(hub.resolve(sys.argv[1]))
"""


@pytest.mark.parametrize("locks", _LOCKS.values(), ids=_LOCKS)
def test_four_processes_may_download_one_model(served: FakeHub, tmp_path: Path, locks: str) -> None:
    served.files["model.safetensors"] += bytes(0)
    cache, script = tmp_path / "cache", _RESOLVE.format(locks=locks)
    env = os.environ | {"HF_ENDPOINT": served.url, "HF_HUB_CACHE": str(cache)}
    served.cut_after, served.cuts = 50_000, 2
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, ID], env=env, stdin=pipe, stdout=pipe, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert set(results) == {str(cache / "models--owner--tiny-model" / "snapshots" / COMMIT)}
    assert is_whole(Path(results[0]), tmp_path)
    assert not list(cache.rglob("*.partial")) + list(cache.rglob("*.starcoder-tmp"))
    assert sum("model.safetensors" in request for request in served.requests) <= 4


def test_what_a_killed_process_left_is_gone_on_with(served: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    script = """
import os, sys
from starcoder import hub
class Kill:
    done = 0
    def start(self, total): pass
    def advance(self, n):
        self.done += n
        if self.done > 60_000: os.kill(os.getpid(), 9)
hub.resolve(sys.argv[1], None, Kill())
"""
    env = os.environ | {"HF_ENDPOINT": served.url, "HF_HUB_CACHE": str(cache)}
    assert subprocess.run([sys.executable, "-c", script, ID], env=env).returncode == -9
    (partial,) = cache.rglob("*.partial")
    n_left = partial.stat().st_size
    assert n_left > 0
    assert is_whole(hub.resolve(ID), tmp_path)
    assert served.ranges[0].startswith(f"bytes={n_left}-")
    assert not list(cache.rglob("*.partial"))
