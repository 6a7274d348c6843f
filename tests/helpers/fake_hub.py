"""A small Hub on this machine, for tests: it serves files, does wrong what it is told to, and
remembers what was asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from starcoder import formats, hub
from starcoder.errors import InputError
from starcoder.hub import _download, _library

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "owner/tiny-model"


@dataclass
class FakeHub:
    """Files to serve, what to do wrong, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    cut_after: int | None = None  # bytes of a file until the connection breaks
    cuts: int = 0  # how often it does
    refuse: tuple[int, str] | None = None  # status and error code of every answer
    damage: bool = False
    raw: bytes | None = None  # the answer about the model, instead of JSON
    commit: str = COMMIT
    endless: bool = False  # bodies go on after their end
    knows_ranges: bool = True
    token: str | None = None  # that is asked for
    store: str | None = None  # host to which files are redirected
    tokens: list[str | None] = field(default_factory=list)  # that the store was sent
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, directory: Path) -> None:
        self.files |= {path.name: path.read_bytes() for path in directory.iterdir()}

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, raw in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(raw), "blobId": git}
            if not name.endswith(".json"):
                sha256 = hashlib.sha256(raw).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(raw), "pointerSize": 134}
            siblings.append(entry)
        return {"id": ID, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """The two endpoints that are used: what a model has, and a file of it."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/") or not path.startswith("/api/"):  # the library's own
            with self.hub.lock:
                self.hub.requests.append(path)
        if self.hub.refuse is not None:
            return self.answer(self.hub.refuse[0], {"X-Error-Code": self.hub.refuse[1]})
        if path.startswith("/store/"):
            self.hub.tokens.append(self.headers.get("Authorization"))
            return self.send_file(self.hub.files[path.removeprefix("/store/")])
        wanted = self.hub.token and f"Bearer {self.hub.token}"
        if wanted and self.headers.get("Authorization") != wanted:
            return self.answer(401, {"X-Error-Code": "GatedRepo"})
        return self.route(path)

    def route(self, path: str) -> None:
        known = re.fullmatch(f"/api/models/{ID}(/revision/(.*))?", path)
        if known:
            if known[2] in (None, "main", self.hub.commit):
                raw = self.hub.raw
                raw = json.dumps(self.hub.info()).encode() if raw is None else raw
                return self.answer(200, {}, raw)
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/models/"):
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        name = path.removeprefix(f"/{ID}/resolve/{self.hub.commit}/")
        if name in self.hub.files and self.hub.store is not None:
            return self.answer(302, {"Location": f"{self.hub.store}/store/{name}"})
        if name in self.hub.files:
            return self.send_file(self.hub.files[name])
        return self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def send_file(self, raw: bytes) -> None:
        asked = self.headers.get("Range") if self.hub.knows_ranges else None
        start, stop = 0, len(raw)
        if asked:
            with self.hub.lock:
                self.hub.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last or stop - 1) + 1
        if self.hub.damage:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(raw)}"
        body = raw[start:stop] + bytes(1 << 20 if self.hub.endless else 0)
        self.answer(206 if asked else 200, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        limit = self.hub.cut_after
        if limit is not None and len(body) > limit and self.hub.cuts > 0:
            self.hub.cuts -= 1
            self.close_connection = True
            body = body[:limit]
        self.wfile.write(body)


@contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that the library asks instead of the real one, and an empty cache."""
    from huggingface_hub import constants

    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(_library, "_CHUNK", 1000)
    monkeypatch.setattr(_download, "_PAUSE", 0.0)  # between tries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fails(*words: str, name: str = ID, revision: str | None = None) -> str:
    """The error, one line that has all these words."""
    with pytest.raises(InputError) as caught:
        hub.resolve(name, revision=revision)
    line = str(caught.value)
    for word in words:
        assert word in line, line
    assert line.isprintable()
    return line


def folder_of(tmp_path: Path) -> Path:
    """The model's folder in the cache of `serving`."""
    return tmp_path / "cache" / "models--owner--tiny-model"


def python(
    fake: FakeHub, tmp_path: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, whose library asks this Hub."""
    env = {**os.environ, "HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home"), **settings}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


def starcoder(
    fake: FakeHub, tmp_path: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """The command, which asks this Hub."""
    return python(fake, tmp_path, "-m", "starcoder", *arguments, **settings)


def is_whole(path: Path, tmp_path: Path) -> bool:
    """Whether a folder of the cache is the model that the fixture serves."""
    return formats.read(path) == formats.read(tmp_path / "served")
