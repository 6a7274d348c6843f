"""The machine: how many threads and how much memory this process can have.

A container's cgroup and the process's own limits often allow less than the machine has: the least
counts. Read from Linux's /proc and /sys; elsewhere Python says what it knows. What is done with the
answers is for `loading` and `convert.memory`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Room", "Threads", "address_room", "memory_room", "threads"]

_ROOT = Path("/")
_MEMORY_FILES = (  # limit and use of memory, then of swap; and what begins the names in memory.stat
    (("memory.max", "memory.current", "memory.swap.max", "memory.swap.current"), ""),
    (  # version 1: the third is the limit of memory and swap together
        (
            *("memory.limit_in_bytes", "memory.usage_in_bytes"),
            *("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"),
        ),
        "total_",
    ),
)


# ---- threads -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads share the arithmetic, and why there are no more."""

    n: int
    note: str = ""  # "of 2 CPUs: CPU quota of 0.5"; empty where there is nothing to explain

    def started(self, n: int) -> Threads:
        """What is left of them where the system has started `n`."""
        return self if n == self.n else Threads(n, f"of {self.n}: the system starts no more")

    def n_within(self, nbytes: int | None) -> int:
        """How many of them have room for their stacks in so many bytes of addresses; at least 1."""
        return self.n if nbytes is None else min(self.n, max(1, nbytes // _stack_bytes()))


def threads(wanted: int | None = None, *, root: Path = _ROOT) -> Threads:
    """The threads that run where `wanted` are asked for; by default those that are fastest.

    Never more than can run at once, by affinity mask and cgroup quota: one that waits for a CPU
    while it holds a piece of work stops the others. By default no more than there are cores either:
    hyperthreads share the units that multiply.

    Args:
        wanted: threads, 1 or more, or None.
        root: of the file system that is asked.
    """
    n_cpus, cpus = os.cpu_count() or 1, _affinity()
    limits = [(n_cpus, f"the machine has {_counted(n_cpus, 'CPU')}")]
    if cpus is not None:
        limits.append((len(cpus), f"affinity to {_counted(len(cpus), 'CPU')}"))
    quota = _cpu_quota(root)
    if quota < math.inf:
        limits.append((math.ceil(quota), f"CPU quota of {round(quota, 2) or quota:g}"))
    if wanted is not None:
        n, reason = _least(limits)
        asked = f"of the {wanted} asked for: {reason}"
        return Threads(wanted) if wanted <= n else Threads(n, asked)
    if cpus is not None:
        n_cores = _n_cores(cpus, root)
        limits.append((n_cores, _counted(n_cores, "physical core")))
    n, reason = _least(limits)
    return Threads(n, f"of {n_cpus} CPUs: {reason}" if n < n_cpus else "")


def _least(limits: list[tuple[int, str]]) -> tuple[int, str]:
    """The first of the least."""
    return min(limits, key=lambda limit: limit[0])


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _affinity() -> Collection[int] | None:
    """The CPUs that this process may run on; None: the system does not say."""
    ask: Callable[[int], Any] | None = getattr(os, "sched_getaffinity", None)
    return (ask(0) or None) if ask else None


def _cpu_quota(root: Path) -> float:
    """CPUs' worth of time, the least of the process's cgroup and those above it; inf: no limit."""
    return min((_quota_of(folder) for folder in _cgroups("cpu", root)), default=math.inf)


def _quota_of(folder: Path) -> float:
    """CPUs' worth of time that one cgroup may have."""
    words = _read(folder / "cpu.max").split()  # of version 2, "max 100000" if there is no limit
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _n_cores(cpus: Collection[int], root: Path) -> int:
    """Physical cores among these CPUs; a CPU of an unknown core counts as one."""
    return len({_siblings(cpu, root) for cpu in cpus})


def _siblings(cpu: int, root: Path) -> str:
    """The CPUs of a core as the system lists them, "0,4" or "0-1"."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    text = _read(path).strip()
    ranges = re.findall(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    inside = any(int(low) <= cpu <= int(high or low) for low, high in ranges)
    return text if inside else str(cpu)


def _stack_bytes() -> int:
    """What a thread takes of the addresses."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return 8 << 20 if limit == resource.RLIM_INFINITY else max(limit, 1 << 20)


# ---- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that this process can still have, and the limit that says so."""

    nbytes: int
    limit: str  # "free memory of this machine"


def memory_room(*, root: Path = _ROOT) -> Room | None:
    """Memory that can be filled before the system ends a process for it; None: unknown.

    Page cache counts as free, since it is dropped first; so does free swap, as what idle programs
    hold can go there. But never more than the whole memory of the machine or cgroup: a model in
    swap would be read from disk for every token.

    Args:
        root: of the file system that is asked.
    """
    found = _numbers(_read(root / "proc/meminfo"))
    rooms = []
    free, swap = found.get("MemAvailable"), found.get("SwapFree", 0)
    if free is not None:
        kib = min(free + swap, found.get("MemTotal", free + swap))
        rooms.append(Room(kib << 10, "free memory of this machine"))
    elif (total := _physical_memory()) is not None:
        rooms.append(Room(total, "memory of this machine"))
    for folder in _cgroups("memory", root):
        room = _room_in(folder, swap << 10)
        if room is not None:
            rooms.append(Room(room, "memory left in its cgroup"))
    return min(rooms, key=lambda room: room.nbytes, default=None)


def address_room(*, root: Path = _ROOT) -> Room | None:
    """Addresses that this process can still have, used or not; None: no limit, or unknown.

    Args:
        root: of the file system that is asked.
    """
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _number(_read(root / "proc/self/statm").partition(" ")[0])
    if limit == resource.RLIM_INFINITY or pages is None:
        return None
    in_use = pages * resource.getpagesize()
    return Room(max(0, limit - in_use), "address space left (ulimit -v)")


def _physical_memory() -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        if pages > 0 and page_bytes > 0:
            return pages * page_bytes
    return None


def _room_in(folder: Path, swap: int) -> int | None:
    """Bytes that a cgroup has left; None: it has no limit, or none that can be read."""
    stat = _numbers(_read(folder / "memory.stat"))
    for names, prefix in _MEMORY_FILES:
        limit, used, swap_limit, swap_used = (_number(_read(folder / name)) for name in names)
        if limit is not None and used is not None:
            if swap_limit is not None and swap_used is not None:
                swap = min(swap, max(0, swap_limit - swap_used))
            cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active"))
            return max(0, min(limit, limit - used + cached + swap))
    return None


# ---- files of the system -------------------------------------------------------------------------


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the cgroup that this process is in, and of all above it, in both versions."""
    paths = _cgroup_paths(root)
    below: list[Path] = []
    tops: list[Path] = []
    for top, inside, controllers in _cgroup_mounts(root):
        name = "" if controllers is None else controller
        if name not in paths or (controllers is not None and controller not in controllers):
            continue
        tops.append(top)
        own = os.path.relpath(paths[name], inside)
        if not own.startswith(".."):
            below += [top, *(top / own[:at] for at in _ends(own))]
    # In a container that sees the paths of its host, what is mounted is its own group.
    yield from dict.fromkeys(below or tops)


def _ends(path: str) -> list[int]:
    """Where the names of a path end: "a/b" is within "a"."""
    return [] if path == "." else [match.end() for match in re.finditer("[^/]+", path)]


def _cgroup_paths(root: Path) -> dict[str, str]:
    """The process's path in each hierarchy, by controller; "" is version 2."""
    paths: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, colon, rest = line.partition(":")
        controllers, other_colon, path = rest.partition(":")
        if colon and other_colon and path.startswith("/"):
            paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _cgroup_mounts(root: Path) -> Iterator[tuple[Path, str, list[str] | None]]:
    """Where cgroups are mounted, which of their folders, and with which controllers.

    Those of version 2 are said elsewhere: None.
    """
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, device = line.partition(" - ")
        fields, kind = place.split(), device.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            inside, top = (_unescape(field) for field in fields[3:5])
            if inside.startswith("/"):
                controllers = None if kind[0] == "cgroup2" else kind[-1].split(",")
                yield root / top.lstrip("/"), inside, controllers


def _unescape(field: str) -> str:
    r"""A name in mountinfo, where a blank is \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number, as in /proc/meminfo; other lines are passed over."""
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    pairs = ((row[0], _number(row[1])) for row in rows if len(row) >= 2)
    return {name: number for name, number in pairs if number is not None}


def _number(text: str) -> int | None:
    """What a file says that holds one number; None: "max", or anything else."""
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else None


def _read(path: Path) -> str:
    """A file's text; empty if there is none, or none that can be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
