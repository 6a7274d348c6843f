"""Threads and memory are what a machine lets this process have; the machines here are made up."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import pytest

from starcoder.core import machine

GB = 1 << 30
PLAIN = "22 1 0:21 / /proc rw,nosuid - proc proc rw\nnonsense\n\n"
V2 = PLAIN + "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = PLAIN + (
    "31 22 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 22 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 CPUs, all of which the process may use."""
    affinity(monkeypatch, range(8))


def affinity(monkeypatch: pytest.MonkeyPatch, cpus: range, n_cpus: int = 8) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus), raising=False)


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, own: str, **files: str) -> Path:
    """A process in cgroup `own`; `a__cpu_max` is /a/cpu.max."""
    made = {"proc/self/mountinfo": V2, "proc/self/cgroup": f"0::{own}\n"}
    made |= {_name(name, "sys/fs/cgroup"): text for name, text in files.items()}
    return make(root, made)


def v1(root: Path, own: str, controller: str, **files: str) -> Path:
    lines = f"9:name=systemd:/elsewhere\n7:{controller}:{own}\n0::/elsewhere\n"
    made = {"proc/self/mountinfo": V1, "proc/self/cgroup": lines}
    made |= {_name(name, f"sys/fs/cgroup/{controller}"): text for name, text in files.items()}
    return make(root, made)


def _name(key: str, top: str) -> str:
    *folders, name = key.split("__")
    kind, _, rest = name.partition("_")
    return "/".join([top, *folders, f"{kind}.{rest}"])


def siblings(root: Path, *lists: str) -> Path:
    at = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return make(root, {at.format(i): text for i, text in enumerate(lists)})


# Threads -------------------------------------------------------------------------------------


def test_by_default_every_cpu_has_a_thread(tmp_path: Path) -> None:
    assert machine.threads(root=tmp_path) == machine.Threads(8)


@pytest.mark.parametrize(
    ("lists", "n"),
    [
        (["0,4", "1,5", "2,6", "3,7"] * 2, 4),
        (["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"], 4),
        (["0-1\n", "0-1\n", "2-3\n", "2-3\n", "4", "5", "6", "7"], 6),  # some cores have two
        (["0-7"] * 8, 1),
        (["0-1", "0-1"], 7),  # of the others nothing is known
        (["what?", "", "9" * 5000, "0-1", "-", "5,", ",", "\n"], 8),
    ],
)
def test_by_default_hyperthreads_of_a_core_share_a_thread(
    tmp_path: Path, lists: list[str], n: int
) -> None:
    found = machine.threads(root=siblings(tmp_path, *lists))
    cores = "1 physical core" if n == 1 else f"{n} physical cores"
    assert found == machine.Threads(n, f"of 8 CPUs: {cores}" if n < 8 else "")


def test_only_cores_of_the_affinity_mask_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siblings(tmp_path, "0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
    affinity(monkeypatch, range(4))
    assert machine.threads(root=tmp_path) == machine.Threads(4, "of 8 CPUs: affinity to 4 CPUs")
    affinity(monkeypatch, range(0, 8, 4))
    assert machine.threads(root=tmp_path) == machine.Threads(1, "of 8 CPUs: 1 physical core")


def test_a_system_without_affinity_says_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.threads(root=tmp_path) == machine.Threads(8)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.threads(root=tmp_path).n == 1


@pytest.mark.parametrize(
    ("text", "n"),
    [
        *(("50000 100000", 1), ("100000 100000", 1), ("100001 100000\n", 2), ("350000 100000", 4)),
        *(("max 100000", 8), ("max", 8), ("800000 100000", 8), ("1600000 100000", 8)),
        *(("", 8), ("0 100000", 8), ("-1 100000", 8), ("50000 0", 8), ("50000", 8), ("1 2 3", 8)),
        *(("nan nan", 8), ("9" * 5000 + " 1", 8), ("\0\0 \x7f", 8)),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_cpu_quota_is_rounded_up_to_threads(
    tmp_path: Path, version: int, text: str, n: int
) -> None:
    if version == 2:
        root = v2(tmp_path, "/a", a__cpu_max=text)
    else:
        quota, _, period = text.replace("max", "-1").partition(" ")
        files = {"a__cpu_cfs_quota_us": quota + "\n", "a__cpu_cfs_period_us": period}
        root = v1(tmp_path, "/a", "cpu,cpuacct", **files)
    assert machine.threads(root=root).n == n


def test_the_reason_for_fewer_threads_is_said(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a", a__cpu_max="50000 100000")
    assert machine.threads(root=root).note == "of 8 CPUs: CPU quota of 0.5"
    assert machine.threads(1, root=root) == machine.Threads(1)


@pytest.mark.parametrize("limited", ["cpu_max", "a__cpu_max", "a__b__cpu_max"])
def test_the_least_quota_of_all_groups_above_counts(tmp_path: Path, limited: str) -> None:
    quotas = {"cpu_max": "max 100000", "a__cpu_max": "700000 100000", "a__b__cpu_max": "max"}
    root = v2(tmp_path, "/a/b", **quotas | {limited: "300000 100000"})
    make(root, {"sys/fs/cgroup/a/other/cpu.max": "100000 100000"})
    assert machine.threads(root=root).n == 3


def test_each_controller_of_version_1_has_its_own_path(tmp_path: Path) -> None:
    root = v1(tmp_path, "/a", "cpu,cpuacct", a__cpu_cfs_quota_us="200000")
    make(root, {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000"})
    make(root, {"sys/fs/cgroup/cpu,cpuacct/elsewhere/cpu.cfs_quota_us": "100000"})
    make(root, {"sys/fs/cgroup/cpu,cpuacct/elsewhere/cpu.cfs_period_us": "100000"})
    assert machine.threads(root=root).n == 2


def test_both_versions_side_by_side_count(tmp_path: Path) -> None:
    """A hybrid: version 1 with the controllers, version 2 without, or with some of them."""
    mounts = V1 + "33 22 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    lines = "7:cpu,cpuacct:/a\n0::/b c\n"
    root = make(tmp_path, {"proc/self/mountinfo": mounts, "proc/self/cgroup": lines})
    make(root, {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "500000"})
    make(root, {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000"})
    assert machine.threads(root=root).n == 5
    make(root, {"sys/fs/cgroup/unified/b c/cpu.max": "300000 100000"})
    assert machine.threads(root=root).n == 3


@pytest.mark.parametrize(
    ("inside", "own"),
    [
        ("/docker/1f", "/docker/1f"),  # the host's path, of which the container sees the end
        ("/", "/docker/1f"),  # the host's path, of which nothing is to be seen
        ("/docker/1f", "/"),
        ("/", "/../../other"),  # a namespace that the process has left
    ],
)
def test_in_a_container_the_mount_is_its_own_group(tmp_path: Path, inside: str, own: str) -> None:
    mount = PLAIN + f"30 22 0:26 {inside} /c\\040g rw - cgroup2 cgroup2 rw\n"
    root = make(tmp_path, {"proc/self/mountinfo": mount, "proc/self/cgroup": f"0::{own}\n"})
    make(root, {"c g/cpu.max": "200000 100000"})
    assert machine.threads(root=root).n == 2


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize(
    "text", ["", "\n\n", "0::", "::::\n0:\n:", " - \n1 2 3 4 5 - cgroup2", "\0" * 99, "/ - / " * 50]
)
def test_garbage_in_files_of_the_system_is_no_limit(tmp_path: Path, name: str, text: str) -> None:
    root = v2(tmp_path, "/a", a__cpu_max="100000 100000", a__memory_max="1")
    make(root, {name: text, "proc/meminfo": "MemAvailable: many kB\nx", "proc/self/statm": "a b"})
    assert machine.threads(root=root) == machine.Threads(8)
    room = machine.memory_room(root=root)
    assert room is None or room.nbytes > GB / 4
    (root / name).write_bytes(b"\xff\xfe:" * 99)
    assert machine.threads(root=root).n == 8


def test_more_threads_than_can_run_at_once_are_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.threads(8, root=tmp_path) == machine.Threads(8)
    expected = machine.Threads(8, "of the 9 asked for: the machine has 8 CPUs")
    assert machine.threads(9, root=tmp_path) == expected
    affinity(monkeypatch, range(2))
    expected = machine.Threads(2, "of the 8 asked for: affinity to 2 CPUs")
    assert machine.threads(8, root=tmp_path) == expected
    root = v2(tmp_path, "/a", a__cpu_max="120000 100000")
    assert machine.threads(2, root=root) == machine.Threads(2)
    root = v2(tmp_path, "/a", a__cpu_max="50000 100000")
    expected = machine.Threads(1, "of the 2 asked for: CPU quota of 0.5")
    assert machine.threads(2, root=root) == expected


def test_who_asks_for_hyperthreads_gets_them(tmp_path: Path) -> None:
    siblings(tmp_path, *["0,4", "1,5", "2,6", "3,7"] * 2)
    assert machine.threads(6, root=tmp_path) == machine.Threads(6)


# Memory --------------------------------------------------------------------------------------


def meminfo(root: Path, free: int, total: int = 64 * GB, swap: int = 0) -> Path:
    """A machine with so many bytes."""
    rows = {"MemTotal": total, "MemFree": 7, "MemAvailable": free, "SwapFree": swap}
    text = "".join(f"{name}:  {n >> 10} kB\n" for name, n in rows.items())
    return make(root, {"proc/meminfo": text + "HugePages_Total:       0\n"})


def room(root: Path) -> int:
    found = machine.memory_room(root=root)
    assert found is not None
    return found.nbytes


def test_without_cgroups_the_machine_s_free_memory_counts(tmp_path: Path) -> None:
    expected = machine.Room(5 * GB, "free memory of this machine")
    assert machine.memory_room(root=meminfo(tmp_path, 5 * GB)) == expected


def test_swap_takes_what_idle_programs_hold_and_no_model(tmp_path: Path) -> None:
    assert room(meminfo(tmp_path, 5 * GB, swap=2 * GB)) == 7 * GB
    assert room(meminfo(tmp_path, 5 * GB, total=6 * GB, swap=100 * GB)) == 6 * GB


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable:\n", "x" * 99])
def test_without_figures_the_physical_memory_counts(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, {"proc/meminfo": text})
    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 16384}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert room(tmp_path) == 16384000
    for missing in ({"SC_PHYS_PAGES": -1, "SC_PAGE_SIZE": 16384}.__getitem__, lambda _: int("x")):
        monkeypatch.setattr(os, "sysconf", missing)
        assert machine.memory_room(root=tmp_path) is None


STAT = "anon 5\ninactive_file 3000\nactive_file 200\ntotal_inactive_file 40\ntotal_active_file 5\n"


def test_a_cgroup_of_version_2_has_its_limit_less_what_cannot_be_dropped(tmp_path: Path) -> None:
    meminfo(tmp_path, 5 * GB)
    files = {"a__memory_max": f"{GB}\n", "a__memory_current": "700000\n", "a__memory_stat": STAT}
    root = v2(tmp_path, "/a", **files)
    expected = machine.Room(GB - 700000 + 3200, "memory left in its cgroup")
    assert machine.memory_room(root=root) == expected


def test_a_cgroup_of_version_1_has_its_limit_less_what_cannot_be_dropped(tmp_path: Path) -> None:
    meminfo(tmp_path, 5 * GB)
    root = v1(tmp_path, "/a", "memory", **{"a__memory_stat": STAT})
    at = "sys/fs/cgroup/memory/a/memory."
    files = {"limit_in_bytes": f"{GB}\n", "usage_in_bytes": "700000\n"}
    make(root, {at + name: text for name, text in files.items()})
    assert room(root) == GB - 700000 + 45
    make(root, {at + "limit_in_bytes": "9223372036854771712\n"})  # none
    assert room(root) == 5 * GB


def test_swap_of_a_cgroup_is_no_more_than_it_may_use(tmp_path: Path) -> None:
    meminfo(tmp_path, 5 * GB, swap=3 * GB)
    files = {"a__memory_max": str(2 * GB), "a__memory_current": str(GB + GB // 2)}
    assert room(v2(tmp_path, "/a", **files)) == 2 * GB
    made = {"sys/fs/cgroup/a/memory.swap.max": str(GB // 2)}
    made |= {"sys/fs/cgroup/a/memory.swap.current": str(GB // 4)}
    assert room(make(tmp_path, made)) == GB // 2 + GB // 4
    assert room(make(tmp_path, {"sys/fs/cgroup/a/memory.swap.max": "0"})) == GB // 2
    v1(tmp_path, "/a", "memory")
    at = "sys/fs/cgroup/memory/a/memory."
    rows = {"limit": 2 * GB, "usage": 2 * GB, "memsw.limit": 2 * GB + 7}
    assert room(make(tmp_path, {f"{at}{k}_in_bytes": str(v) for k, v in rows.items()})) == 7


@pytest.mark.parametrize("limited", ["", "a/", "a/b/"])
@pytest.mark.parametrize("current", [GB // 2, 9 * GB])
def test_the_least_room_of_all_groups_above_counts(
    tmp_path: Path, limited: str, current: int
) -> None:
    root = v2(meminfo(tmp_path, 5 * GB), "/a/b")
    for folder in ("", "a/", "a/b/"):
        limit = str(GB) if folder == limited else "max\n"
        at = f"sys/fs/cgroup/{folder}memory."
        make(root, {at + "max": limit, at + "current": str(current)})
    assert room(root) == max(0, GB - current)


def test_addresses_are_counted_where_they_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, {"proc/self/statm": "1000 7 7 7 0 7 0\n"})
    limits = {resource.RLIMIT_AS: (2000 * resource.getpagesize(), resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    expected = machine.Room(1000 * resource.getpagesize(), "address space left (ulimit -v)")
    assert machine.address_room(root=tmp_path) == expected
    assert machine.address_room(root=tmp_path / "nothing") is None
    limits[resource.RLIMIT_AS] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert machine.address_room(root=tmp_path) is None


def test_this_machine_has_threads_and_memory() -> None:
    assert machine.threads().n >= 1
    room = machine.memory_room()
    assert room is None or 0 <= room.nbytes < math.inf


def test_no_more_threads_start_than_have_room_for_their_stacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8 << 20, 8 << 20))
    assert machine.Threads(64).n_within(None) == 64
    assert machine.Threads(64).n_within(1 << 40) == 64
    assert machine.Threads(64).n_within(5 * (8 << 20) + 1) == 5
    assert machine.Threads(64).n_within(0) == machine.Threads(64).n_within(-5) == 1
