"""Runs that write into one folder at the same time never touch each other's files.

`make campaign-writers` (STARCODER_WRITES=100000) writes a hundred thousand; a usual run, some.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starcoder.errors import WriteError
from starcoder.formats.io import temporary_files
from starcoder.formats.io.atomic import write_file

N_WRITES = int(os.environ.get("STARCODER_WRITES", "1200"))
N_WRITERS = 4

WRITE = """
import sys
from pathlib import Path
from starcoder.errors import WriteError
from starcoder.formats.io import temporary_files
from starcoder.formats.io.atomic import write_file
folder, me, n, by_locks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "locks"
if by_locks:  # each run is on a machine of its own, and so may ask the locks alone
    temporary_files._machine = lambda: f"{int(me):08x}"
    temporary_files._FORSAKEN = -1.0
sys.stdin.readline()
n_failed = 0
for i in range(n):
    name, content = ("shared" if i % 2 else me), f"{me} {i}".encode() * 9
    try:
        write_file(folder / name, len(content), [content[:9], content[9:]])
    except WriteError as error:
        n_failed += 1
        print(error, file=sys.stderr)
    else:
        whole = (folder / name).read_bytes()
        assert whole == whole[:len(whole) // 9] * 9, whole
        assert name == "shared" or whole == content
print(n_failed)
"""


@pytest.mark.parametrize("by", ["process", "locks"])
@pytest.mark.timeout(3600)
def test_no_write_of_many_fails_or_is_lost(tmp_path: Path, by: str) -> None:
    """Several runs at once, each to a name of its own and to one that all share."""
    n = N_WRITES // 2 // N_WRITERS
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path), str(i), str(n), by],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for i in range(N_WRITERS)
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    results = [(*run.communicate(), run.returncode) for run in runs]
    assert results == [("0\n", "", 0)] * N_WRITERS
    assert sorted(os.listdir(tmp_path)) == [*map(str, range(N_WRITERS)), "shared"]


# ------------------------------------------------------------------------------------------------


def put(path: Path, content: bytes = b"1") -> None:
    write_file(path, len(content), [content])


def leftover(folder: Path, pid: int, machine: str | None = None, hours: float = 0) -> Path:
    """A temporary file as a killed run leaves it."""
    path = folder / f".m.gguf.{machine or temporary_files._machine()}-{pid}-0123abcd.starcoder-tmp"
    path.write_bytes(b"half")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(params=["as they are", "do nothing", errno.ENOLCK, errno.ENOSYS])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems whose locks work, do nothing, or fail."""

    def flock(fd: int, operation: int) -> None:
        if isinstance(request.param, int):
            raise OSError(request.param, os.strerror(request.param))

    if request.param != "as they are":
        monkeypatch.setattr(fcntl, "flock", flock)


def test_a_running_writers_file_stays_whatever_locks_do(tmp_path: Path, locks: None) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"ne"
        put(tmp_path / "other")
        put(tmp_path / "x", b"first")
        yield b"w"

    write_file(tmp_path / "x", 3, pieces())
    assert (tmp_path / "x").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["other", "x"]


def test_what_a_killed_run_left_goes_whatever_locks_do(
    tmp_path: Path, locks: None, dead_pid: int
) -> None:
    stale = leftover(tmp_path, dead_pid)
    alive = leftover(tmp_path, os.getpid())
    put(tmp_path / "x")
    assert (stale.exists(), alive.exists()) == (False, True)


def test_leftovers_of_another_machine_wait_for_a_day(tmp_path: Path, dead_pid: int) -> None:
    """Nobody can ask whether their writers run; an unknown spelling is of another machine too."""
    young = leftover(tmp_path, dead_pid, "00000000", hours=23)
    old = leftover(tmp_path, os.getpid(), "00000001", hours=25)
    strange = tmp_path / ".m.gguf.0123abcd.starcoder-tmp"
    strange.write_bytes(b"half")
    put(tmp_path / "x")
    assert (young.exists(), old.exists(), strange.exists()) == (True, False, True)


def test_a_lock_that_is_held_saves_even_an_old_file(tmp_path: Path) -> None:
    old = leftover(tmp_path, 1, "00000001", hours=25)
    with old.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        put(tmp_path / "x")
        assert old.exists()
    put(tmp_path / "x")
    assert not old.exists()


def test_a_file_that_is_locked_by_another_is_given_up_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_calls = fcntl.flock, 0

    def flock(fd: int, operation: int) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise BlockingIOError
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    put(tmp_path / "x")
    assert (n_calls, os.listdir(tmp_path)) == (2, ["x"])


def test_the_lock_is_held_until_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run of another machine, in the middle of a slow rename."""
    rename = os.rename

    def slow(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(temporary_files, "_machine", lambda: "00000000")
        monkeypatch.setattr(temporary_files, "_FORSAKEN", -1.0)
        put(tmp_path / "second")
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow)
    put(tmp_path / "first")
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


def test_descriptors_and_threads_end_with_the_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("lost")

    put(tmp_path / "x")
    n_open, n_threads = len(os.listdir("/dev/fd")), threading.active_count()
    for _ in range(20):
        put(tmp_path / "x")
        with pytest.raises(ValueError, match="lost"):
            write_file(tmp_path / "x", 3, pieces())
        with pytest.raises(WriteError, match="where 4 were due"):
            write_file(tmp_path / "x", 4, [b"new"])
    for _ in range(500):  # a writer that was abandoned ends soon
        if threading.active_count() <= n_threads:
            break
        time.sleep(0.01)
    assert len(os.listdir("/dev/fd")) == n_open


# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "ß", "日", "🦙"])
@pytest.mark.parametrize("n_bytes", [231, 232, 240, 252, 255])
def test_every_name_that_the_system_allows_can_be_written(
    tmp_path: Path, letter: str, n_bytes: int
) -> None:
    path = tmp_path / (letter * (n_bytes // len(letter.encode()))).ljust(1)
    path = path.with_name(path.name + "y" * (n_bytes - len(os.fsencode(path.name))))
    put(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]


def test_names_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.gguf")
    put(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_that_leads_to_itself_is_one_line_and_stays(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WriteError, match="levels of symbolic links, expected a file") as caught:
        put(tmp_path / "loop")
    assert "\n" not in str(caught.value)
    assert os.readlink(tmp_path / "loop") == "loop"


def test_a_pipe_by_any_name_is_no_file_to_write() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(WriteError, match="no regular file, expected the name of a file"):
            put(Path(f"/dev/fd/{write}"))
    finally:
        os.close(read)
        os.close(write)


def test_a_name_with_a_nul_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="null"):
        put(tmp_path / "a\0b")
