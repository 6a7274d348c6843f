"""Models by their Hub id, against a small Hub of our own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from conftest import TinyModel, write_hf
from starcoder import formats, hub
from starcoder.errors import InputError
from torch_file import write_hf_bin

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
    token: str | None = None  # that is asked for
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
        return {"id": ID, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """The two endpoints that are used: what a model has, and a file of it."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(path)
        if self.hub.refuse is not None:
            return self.answer(self.hub.refuse[0], {"X-Error-Code": self.hub.refuse[1]})
        wanted = self.hub.token and f"Bearer {self.hub.token}"
        if wanted and self.headers.get("Authorization") != wanted:
            return self.answer(401, {"X-Error-Code": "GatedRepo"})
        return self.route(path)

    def route(self, path: str) -> None:
        known = re.fullmatch(f"/api/models/{ID}(/revision/(.*))?", path)
        if known:
            if known[2] in (None, "main", COMMIT):
                return self.answer(200, {}, json.dumps(self.hub.info()).encode())
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/models/"):
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        name = path.removeprefix(f"/{ID}/resolve/{COMMIT}/")
        if name in self.hub.files:
            return self.send_file(self.hub.files[name])
        return self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def send_file(self, raw: bytes) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if self.hub.damage:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked:
            with self.hub.lock:
                self.hub.ranges.append(asked)
            headers["Content-Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        self.answer(206 if asked else 200, headers, raw[start:])

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


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that the library asks instead of the real one, and an empty cache."""
    from huggingface_hub import constants, file_download

    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between retries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def served(fake: FakeHub, tmp_path: Path, tiny: TinyModel) -> FakeHub:
    fake.add(write_hf(tmp_path / "served", tiny, n_shards=2))
    return fake


def fails(*words: str, name: str = ID, revision: str | None = None) -> None:
    with pytest.raises(InputError) as caught:
        hub.resolve(name, revision=revision)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


# ------------------------------------------------------------------------------------------------
# Paths


def test_a_path_is_never_asked_for(fake: FakeHub, tmp_path: Path) -> None:
    existing = tmp_path / ID
    existing.mkdir(parents=True)
    assert hub.resolve(existing) == existing
    for path in ("/no/such/path", "no-slash", "models/missing.gguf", "./a/b", "a/b/c", "../a", ""):
        assert hub.resolve(path) == Path(path)
    assert fake.requests == []


def test_a_revision_of_a_path_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    fails("revision", name=str(tmp_path), revision="main")
    fails("a branch, tag or commit", revision="../../x")
    assert fake.requests == []


# ------------------------------------------------------------------------------------------------
# Downloads


def test_a_model_is_downloaded_and_read(served: FakeHub, tmp_path: Path) -> None:
    served.files |= {"README.md": b"#", "model.gguf": b"x", "evil.py": b"", "training.bin": b""}
    path = hub.resolve(ID)
    assert formats.read(path) == formats.read(tmp_path / "served")
    assert {p.name for p in path.iterdir()} == {p.name for p in (tmp_path / "served").iterdir()}
    assert not list(tmp_path.rglob("*.partial"))


def test_pytorch_weights_are_taken_only_without_safetensors(
    fake: FakeHub, tmp_path: Path, tiny: TinyModel
) -> None:
    fake.add(write_hf_bin(tmp_path / "bin", tiny, n_shards=2))
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "bin")
    fake.add(write_hf(tmp_path / "safe", tiny))
    shutil.rmtree(tmp_path / "cache")
    assert not list(hub.resolve(ID).glob("*.bin"))


def test_what_is_there_is_not_asked_for_again(served: FakeHub) -> None:
    path = hub.resolve(ID)
    served.requests.clear()
    assert hub.resolve(ID) == path
    assert served.requests == [f"/api/models/{ID}"]


def test_the_cache_is_that_of_the_library(served: FakeHub) -> None:
    from huggingface_hub import snapshot_download

    path = hub.resolve(ID)
    assert snapshot_download(ID, local_files_only=True) == str(path)


def test_a_revision_is_found_by_name_and_commit(served: FakeHub) -> None:
    assert hub.resolve(ID, revision="main") == hub.resolve(ID, revision=COMMIT)
    fails("no revision 'v9'", revision="v9")


def test_a_broken_connection_goes_on_where_it_was(served: FakeHub, tmp_path: Path) -> None:
    served.cut_after, served.cuts = 10_000, 3
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "served")
    assert "bytes=10000-" in served.ranges


def test_the_next_run_goes_on_where_the_last_one_ended(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    whole_get = file_download.http_get

    def get_once(*args: Any, resume_size: int = 0, **options: Any) -> None:
        if resume_size:
            raise OSError(110, "Connection timed out")
        whole_get(*args, **options)

    served.cut_after, served.cuts = 10_000, 1
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", get_once)
        fails("Connection timed out", "try again")
    (partial,) = tmp_path.rglob("*.partial")
    assert partial.stat().st_size == 10_000
    served.cut_after = None
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "served")
    assert served.ranges[0] == "bytes=10000-"


def test_damaged_bytes_are_thrown_away(served: FakeHub, tmp_path: Path) -> None:
    served.damage = True
    fails("config.json", "another hash", "try again")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    served.damage = False
    assert formats.read(hub.resolve(ID)).config.n_layers == 2


def test_a_partial_file_of_other_bytes_is_found_out(served: FakeHub, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    blobs = tmp_path / "cache" / "models--owner--tiny-model" / "blobs"
    blobs.mkdir(parents=True)
    digest = hashlib.sha256(served.files[name]).hexdigest()
    (blobs / f"{digest}.partial").write_bytes(b"\0" * 1000)
    fails(name, "another hash")
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "served")
    (blobs / digest).rename(blobs / f"{digest}.partial")
    with (blobs / f"{digest}.partial").open("ab") as file:
        file.write(b"too long")
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "served")


def test_progress_counts_the_bytes_that_come(served: FakeHub) -> None:
    class Count:
        total = done = 0

        def start(self, total: int) -> None:
            self.total = total

        def advance(self, n: int) -> None:
            self.done += n

    served.cut_after, served.cuts = 10_000, 2
    count = Count()
    hub.resolve(ID, None, count)
    assert count.total == count.done == sum(map(len, served.files.values()))


# ------------------------------------------------------------------------------------------------
# What can go wrong


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", ["no such model", "HF_TOKEN"]),
        (404, "RepoNotFound", ["no such model"]),
        (401, "GatedRepo", ["gated", "accept the terms", "HF_TOKEN"]),
        (403, "GatedRepo", ["gated", "accept the terms"]),
        (403, "", ["403", "HF_TOKEN"]),
        (404, "RevisionNotFound", ["no revision"]),
        (500, "", ["500", "try again later"]),
        (429, "", ["429"]),
    ],
)
def test_refusals_say_what_to_do(fake: FakeHub, status: int, code: str, words: list[str]) -> None:
    fake.refuse = status, code
    fails(ID, *words)


def test_the_token_comes_from_the_environment(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.token = "hf_secret"
    fails("gated")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub.resolve(ID).is_dir()


def test_without_a_network_what_was_downloaded_still_serves(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    path = hub.resolve(ID)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.resolve(ID) == hub.resolve(ID, revision=COMMIT) == path
    fails("no answer", "check the connection", name="owner/other")
    fails("no answer", revision="v2")


def test_a_full_disk_is_said_before_the_work(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fails("GB free", "GB for the download")
    assert served.requests == [f"/api/models/{ID}"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_that_lacks_a_file_is_refused_at_once(
    fake: FakeHub, tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    fake.add(write_hf(tmp_path / "served", tiny))
    del fake.files[name]
    fails("no weights" if name.startswith("model") else name)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "change",
    [{"sha": "../../x"}, {"sha": None}, {"siblings": []}, {"siblings": None}],
)
def test_a_hub_that_answers_nonsense_is_refused(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole = served.info()
    monkeypatch.setattr(served, "info", lambda: whole | change)
    fails(ID)


def test_file_names_and_hashes_of_a_hub_stay_in_the_cache(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = served.info()
    escape = {"rfilename": "../model.safetensors", "size": 1, "blobId": "a" * 40}
    monkeypatch.setattr(served, "info", lambda: whole | {"siblings": [*whole["siblings"], escape]})
    assert "../model.safetensors" not in {p.name for p in hub.resolve(ID).iterdir()}
    bad = [{**entry, "lfs": None, "blobId": "../../x"} for entry in whole["siblings"]]
    monkeypatch.setattr(served, "info", lambda: whole | {"siblings": bad})
    fails("an answer as the Hub gives it")


# ------------------------------------------------------------------------------------------------
# Front ends


def test_the_command_runs_a_model_by_its_id(served: FakeHub, tmp_path: Path) -> None:
    env = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "starcoder", "-m", ID, "-p", "def", "-n", "2", "-t", "1"]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def")
    command[4] = "owner/none"
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("starcoder: error: owner/none: found no such path")
    assert result.stderr.count("\n") == 1
