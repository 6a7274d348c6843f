"""Several processes that want one file of the Hub: one downloads, the others wait."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from starcoder import hub
from starcoder.hub import _claim, _download
from starcoder.hub._claim import Claim, LostError, Queue
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, folder_of, is_whole

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
