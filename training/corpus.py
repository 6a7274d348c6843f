"""Gather the corpus: permissively licensed Python source without duplicates.

The sources are the standard library of the running Python and the source distributions that
`packages.txt` names, fetched from the package index that pip is set up for. Nothing in them is run.
What was fetched is pinned, with digests and licences, in `corpus.lock.json`; a second run fetches
the same files. Of the splits, `dev` and `test` are held out: a file of which more than half of the
longer lines stand in a held-out one is dropped from the others. What becomes of the text is
`rows`' affair.
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
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["test", "dev", "train", "algorithms"]
SPLITS: tuple[Split, ...] = get_args(Split)  # what a split shares with an earlier one it loses
HELD_OUT = SPLITS[:2]

HERE = Path(__file__).parent
PACKAGES = HERE / "packages.txt"
LOCK = HERE / "corpus.lock.json"

MAX_DOWNLOAD = 60_000_000  # bytes of an archive: larger ones carry data, not source
MAX_FILE = 200_000  # bytes of a file: larger ones are tables
MIN_FILE = 64
MAX_PACKAGE = 2_500_000  # bytes of source from one package, so that no giant sets the style

PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|PSF|Python[- ]2\.0|Python Software Foundation)\b"
    r"|\b(ISC|HPND|Unlicense|CNRI)\b|^expat$",
    re.I,
)
RESTRICTIVE = re.compile(r"\b(A?L?GPL|GNU|MPL|Mozilla|EPL|CDDL|Proprietary|EUPL)", re.I)

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


@dataclass(frozen=True, slots=True)
class Source:
    """One package of the corpus, as it was fetched.

    Attributes:
        name: The package's name.
        version: Its version.
        license: What its metadata say of the licence.
        split: Which part of the corpus it belongs to.
        filename: The archive's name.
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


def read_packages(path: Path = PACKAGES) -> dict[str, Split]:
    """Read `packages.txt`: name -> split, in the file's order."""
    packages: dict[str, Split] = {}
    split: Split = "train"
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line[1:-1] in SPLITS:
            split = line[1:-1]  # type: ignore[assignment]
        elif line:
            packages[line] = split
    return packages


def gather(work: Path) -> None:
    """Fetch and filter every package; write `work/corpus/{split}.jsonl` and the lock.

    A package that cannot be fetched, or whose licence is not plainly permissive, is reported and
    left out: the corpus is what the lock says it is.
    """
    archives, corpus = work / "archives", work / "corpus"
    archives.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    packages = read_packages()
    pins = read_lock()
    if pins:
        packages = {name: split for name, split in packages.items() if name in pins}
    finder = _finder()
    with ThreadPoolExecutor(8) as pool:
        fetched = list(
            pool.map(lambda name: _fetch(finder, name, pins.get(name), archives), packages)
        )
    found: list[tuple[Source, list[File]]] = [_standard_library()]
    at_hand = []
    for (name, split), archive in zip(packages.items(), fetched, strict=True):
        if isinstance(archive, str):
            print(f"left out: {name}: {archive}")
        else:
            at_hand.append((name, split, archive))
    with ProcessPoolExecutor(initializer=warnings.simplefilter, initargs=("ignore",)) as pool:
        unpacked = list(pool.map(_unpack, *zip(*at_hand, strict=True), chunksize=4))
    for source, files in unpacked:
        name = source.name
        if not _is_permissive(source.license):
            print(f"left out: {name}: its licence is {source.license!r}")
            continue
        found.append((source, files))
    _write(corpus, found)


def read_lock() -> dict[str, Source]:
    """Read the pinned sources, by name; empty before the first run."""
    if not LOCK.exists():
        return {}
    return {entry["name"]: Source(**entry) for entry in json.loads(LOCK.read_text())}


def read_split(work: Path, split: Split) -> list[File]:
    """Read the files of a split, in the order they were written."""
    with (work / "corpus" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [File(**json.loads(line)) for line in lines]


def _finder() -> Any:
    from unearth import PackageFinder

    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not configured:
        from pip._internal.models.index import PyPI

        configured = PyPI.simple_url
    return PackageFinder(index_urls=[configured], no_binary=[":all:"])


def _fetch(finder: Any, name: str, pin: Source | None, archives: Path) -> Path | str:
    """Fetch one archive, or say why not."""
    from urllib.request import urlopen

    if pin is not None and _digest(archives / pin.filename) == pin.sha256:
        return archives / pin.filename
    wanted = f"{name}=={pin.version}" if pin else name
    try:
        best = finder.find_best_match(wanted).best
        if best is None:
            return "no source distribution"
        target = archives / str(best.link.filename)
        expected = (best.link.hashes or {}).get("sha256", "")
        if not expected or _digest(target) != expected:
            with urlopen(best.link.normalized, timeout=120) as response:
                if int(response.headers.get("Content-Length", 0)) > MAX_DOWNLOAD:
                    return f"its archive is larger than {MAX_DOWNLOAD} bytes"
                data = response.read()
            if expected and hashlib.sha256(data).hexdigest() != expected:
                return "the archive differs from its digest"
            partial = target.with_suffix(".partial")
            partial.write_bytes(data)
            partial.rename(target)
    except Exception as error:  # one package out of hundreds must not end the run
        return f"{type(error).__name__}: {error}"
    if pin is not None and _digest(target) != pin.sha256:
        return f"{target.name} is not the archive that {LOCK.name} pins"
    return target


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _unpack(name: str, split: Split, archive: Path) -> tuple[Source, list[File]]:
    """Read the Python files and the metadata of an archive, without running anything in it."""
    members = {path.split("/", 1)[-1]: data for path, data in _members(archive)}
    headers = HeaderParser().parsestr(members.pop("PKG-INFO", b"").decode("utf-8", "replace"))
    source = Source(
        name,
        headers.get("Version", ""),
        _license(headers),
        split,
        archive.name,
        _digest(archive),
        0,
        0,
    )
    return source, _keep(name, members)


def _keep(package: str, candidates: dict[str, bytes]) -> list[File]:
    """What passes the filters, in the order of a hash of the path, up to the package's share."""
    files, size = [], 0
    for path in sorted(candidates, key=lambda path: hashlib.sha256(path.encode()).digest()):
        text = _accept(path, candidates[path]) if path.endswith(".py") else None
        if text is None:
            continue
        files.append(File(package, path, text))
        size += len(candidates[path])
        if size > MAX_PACKAGE:
            break
    return sorted(files, key=lambda file: file.path)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    wanted = (".py", "/PKG-INFO")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if info.filename.endswith(wanted) and info.file_size < 4_000_000:
                    yield info.filename, bundle.read(info)
        return
    with tarfile.open(archive) as bundle:
        for member in bundle:
            if member.isfile() and member.name.endswith(wanted) and member.size < 4_000_000:
                opened = bundle.extractfile(member)
                if opened is not None:
                    yield member.name, opened.read()


def _license(headers: Message) -> str:
    """What the metadata say: the expression, else the classifiers, else the text's first line."""
    expression = headers.get("License-Expression")
    classifiers = [
        c.split("::")[-1].strip()
        for c in headers.get_all("Classifier", [])
        if c.startswith("License ::")
    ]
    classifiers = [c for c in classifiers if c != "OSI Approved"]
    free = (headers.get("License") or "").strip().splitlines()
    return expression or "; ".join(classifiers) or (free[0][:80] if free else "")


def _is_permissive(license_: str) -> bool:
    return bool(PERMISSIVE.search(license_)) and not RESTRICTIVE.search(license_)


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
    if GENERATED_TEXT.search(text[:1500]):
        return None
    lines = text.splitlines() or [""]
    if max(map(len, lines)) > 1000 or len(text) / len(lines) > 100:
        return None
    digits = sum(map(text.count, "0123456789"))
    if digits > len(text) / 5 or "\0" in text or "<|endoftext|>" in text:
        return None
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


def _standard_library() -> tuple[Source, list[File]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    outside = re.compile(r"(^|/)(site-packages|dist-packages|lib2to3/tests/data|ensurepip)(/|$)")
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    candidates = {
        inner: path.read_bytes() for inner, path in paths.items() if not outside.search(inner)
    }
    return Source("python", sys.version.split()[0], "PSF-2.0", "train", "", "", 0, 0), _keep(
        "python", candidates
    )


def _lines(text: str) -> set[int]:
    return {hash(line) for line in map(str.strip, text.splitlines()) if len(line) >= 20}


def _write(corpus: Path, found: list[tuple[Source, list[File]]]) -> None:
    """Drop duplicates, held-out files first, and write splits and lock."""
    found = sorted(found, key=lambda item: SPLITS.index(item[0].split))
    held_out: set[int] = set()
    seen: set[bytes] = set()
    lock: list[Source] = []
    outputs = {
        split: (corpus / f"{split}.jsonl.partial").open("w", encoding="utf-8") for split in SPLITS
    }
    for source, files in found:
        n_files = n_bytes = 0
        for file in files:
            digest = hashlib.sha256(re.sub(r"\s+", " ", file.text).encode()).digest()
            lines = _lines(file.text)
            if digest in seen:
                continue
            seen.add(digest)
            if source.split in HELD_OUT:
                held_out |= lines
            elif lines and len(lines & held_out) > len(lines) / 2:
                continue  # a copy, slightly changed, of what is held out
            outputs[source.split].write(json.dumps(asdict(file)) + "\n")
            n_files += 1
            n_bytes += len(file.text.encode())
        lock.append(Source(**{**asdict(source), "n_files": n_files, "n_bytes": n_bytes}))
    for split, output in outputs.items():
        output.close()
        (corpus / f"{split}.jsonl.partial").rename(corpus / f"{split}.jsonl")
    lock.sort(key=lambda source: (source.split, source.name.lower()))
    LOCK.write_text(json.dumps([asdict(source) for source in lock], indent=1) + "\n")
    for split in SPLITS:
        chosen = [source for source in lock if source.split == split]
        n_files, n_bytes = (sum(getattr(s, key) for s in chosen) for key in ("n_files", "n_bytes"))
        print(f"{split}: {len(chosen)} packages, {n_files} files, {n_bytes / 1e6:.1f} MB")
