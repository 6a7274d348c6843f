"""Gather the corpus: permissively licensed Python source without duplicates.

The sources are the standard library of the running Python and the source distributions that
`corpus.lock.json` pins by digest, fetched from the package index that pip is set up for. Nothing in
them is run. The lock is in the order in which sources are read: of two files that differ in white
space alone the first is kept, and none of which more than half of the longer lines stand in a
held-out one (`test`, `dev`). What becomes of the text is `documents`' affair.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.request import urlopen

Split = Literal["test", "dev", "train", "algorithms"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT = SPLITS[:2]
LOCK = Path(__file__).parent / "corpus.lock.json"

MAX_FILE = 200_000  # bytes of a file: larger ones are tables
MIN_FILE = 64
MAX_PACKAGE = 2_500_000  # bytes of source from one package, so that no giant sets the style

# Copies of other packages, and files that a program wrote.
VENDORED = re.compile(
    r"(^|/)(_?vendor(ed)?|_?vendored_packages|third_?party|extern(al)?s?|site-packages|\.?venv|node_modules)(/|$)",
    re.I,
)
GENERATED_NAME = re.compile(
    r"(_pb2(_grpc)?|_version|versioneer|lextab|parsetab|_tables?|_unicode\w*|entities)\.py$"
)
GENERATED_TEXT = re.compile(
    r"(auto-?generated|generated (by|from|automatically)|do not edit|automatically generated"
    r"|machine generated)",
    re.I,
)
NOT_OF_THE_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|lib2to3/tests/data|ensurepip)(/|$)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One package of the corpus.

    Attributes:
        name: The package's name.
        version: Its version.
        license: What its metadata say of the licence.
        split: Which part of the corpus it belongs to.
        filename: The archive's name; empty for the standard library.
        sha256: The archive's digest.
        n_files: Python files kept.
        n_bytes: Their size.
    """

    name: str
    version: str
    license: str
    split: Split
    filename: str
    sha256: str
    n_files: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class File:
    """A Python file: its package, the path inside it, its text."""

    package: str
    path: str
    text: str


def read_lock() -> list[Source]:
    """Read the pinned sources."""
    return [Source(**entry) for entry in json.loads(LOCK.read_text())]


def read_split(work: Path, split: Split) -> list[File]:
    """Read the files of a split, in the order they were written."""
    with (work / "corpus" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [File(**json.loads(line)) for line in lines]


def gather(work: Path) -> None:
    """Fetch and filter every source; write `work/corpus/{split}.jsonl`.

    What cannot be fetched is left out and said, and so is where more or fewer files were kept than
    the lock says.
    """
    archives = work / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    sources = read_lock()
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(partial(_fetch, _finder(), archives), sources))
    for source, error in zip(sources, errors, strict=True):
        if error:
            print(f"left out: {source.name}: {error}")
    at_hand = [s for s, error in zip(sources, errors, strict=True) if not error]
    with ProcessPoolExecutor(initializer=warnings.simplefilter, initargs=("ignore",)) as pool:
        files = pool.map(partial(_unpack, archives), at_hand, chunksize=4)
        _write(work / "corpus", zip(at_hand, files, strict=True))


def _finder() -> Any:
    from unearth import PackageFinder

    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    return PackageFinder(index_urls=[configured or "https://pypi.org/simple"], no_binary=[":all:"])


def _fetch(finder: Any, archives: Path, source: Source) -> str:
    """Fetch one archive; return what went wrong."""
    target = archives / source.filename
    if not source.filename or (target.exists() and _digest(target.read_bytes()) == source.sha256):
        return ""
    try:
        best = finder.find_best_match(f"{source.name}=={source.version}").best
        if best is None:
            return f"the index has no source distribution of version {source.version}"
        with urlopen(best.link.normalized, timeout=120) as response:
            data = response.read()
    except Exception as error:  # one package out of hundreds must not end the run
        return f"{type(error).__name__}: {error}"
    if _digest(data) != source.sha256:
        return f"{best.link.filename} is not the archive that {LOCK.name} pins"
    target.write_bytes(data)
    return ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unpack(archives: Path, source: Source) -> list[File]:
    """What passes the filters, in the order of a hash of the path, up to the package's share."""
    members = _members(archives / source.filename) if source.filename else _standard_library()
    candidates = dict(members)
    files, size = [], 0
    for path in sorted(candidates, key=lambda path: _digest(path.encode())):
        text = _accept(path, candidates[path])
        if text is None:
            continue
        files.append(File(source.name, path, text))
        size += len(candidates[path])
        if size > MAX_PACKAGE:
            break
    return sorted(files, key=lambda file: file.path)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The Python files of an archive, without its topmost folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for name in bundle.namelist():
                if name.endswith(".py"):
                    yield name.split("/", 1)[-1], bundle.read(name)
        return
    with tarfile.open(archive) as bundle:
        for member in bundle:
            opened = bundle.extractfile(member) if member.name.endswith(".py") else None
            if opened is not None:
                yield member.name.split("/", 1)[-1], opened.read(MAX_FILE + 1)


def _standard_library() -> Iterator[tuple[str, bytes]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in root.rglob("*.py"):
        inner = path.relative_to(root).as_posix()
        if not NOT_OF_THE_LIBRARY.search(inner):
            yield inner, path.read_bytes()


def _accept(path: str, data: bytes) -> str | None:
    """Return the file's text if it is source that a person wrote and Python 3 parses; else None."""
    if (
        not MIN_FILE <= len(data) <= MAX_FILE
        or VENDORED.search(path)
        or GENERATED_NAME.search(path)
    ):
        return None
    try:
        text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    lines = text.splitlines() or [""]
    digits = sum(map(text.count, "0123456789"))
    if (
        GENERATED_TEXT.search(text[:1500])
        or max(map(len, lines)) > 1000
        or len(text) / len(lines) > 100
        or digits > len(text) / 5
        or "\0" in text
        or "<|endoftext|>" in text
    ):
        return None
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


def _write(corpus: Path, found: Iterator[tuple[Source, list[File]]]) -> None:
    """Drop duplicates, and write the splits."""
    corpus.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[File]] = {split: [] for split in SPLITS}
    held_out: set[int] = set()
    seen: set[str] = set()
    for source, files in found:
        n_files = n_bytes = 0
        for file in files:
            digest, lines = _digest(re.sub(r"\s+", " ", file.text).encode()), _lines(file.text)
            if digest in seen:
                continue
            seen.add(digest)
            if source.split in HELD_OUT:
                held_out |= lines
            elif lines and len(lines & held_out) > len(lines) / 2:
                continue  # a copy, slightly changed, of what is held out
            kept[source.split].append(file)
            n_files += 1
            n_bytes += len(file.text.encode())
        if (n_files, n_bytes) != (source.n_files, source.n_bytes):
            print(f"{source.name}: {n_files} files were kept, the lock has {source.n_files}")
    for split, chosen in kept.items():
        written = "".join(json.dumps(asdict(file)) + "\n" for file in chosen)
        (corpus / f"{split}.jsonl").write_text(written, encoding="utf-8")


def _lines(text: str) -> set[int]:
    return {hash(line) for line in map(str.strip, text.splitlines()) if len(line) >= 20}
