"""Models by their Hub id, against a small Hub of our own on this machine."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from starcoder import formats, hub
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, fails, folder_of, starcoder
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel
from tests.helpers.torch_file import write_hf_bin


@pytest.fixture
def served(fake: FakeHub, tmp_path: Path, tiny: TinyModel) -> FakeHub:
    fake.add(write_hf(tmp_path / "served", tiny, n_shards=2))
    return fake


# ------------------------------------------------------------------------------------------------
# Paths


def test_a_path_is_never_asked_for(fake: FakeHub, tmp_path: Path) -> None:
    existing = tmp_path / ID
    existing.mkdir(parents=True)
    assert hub.resolve(existing) == existing
    for path in ("/no/such/path", "no-slash", "models/missing.gguf", "./a/b", "a/b/c", "../a"):
        assert hub.resolve(path) == Path(path)
    assert fake.requests == []


def test_a_revision_of_a_path_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    fails("--revision is for Hub names only", name=str(tmp_path), revision="main")
    fails("--revision is for Hub names only", name="missing.gguf", revision="main")
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
    assert served.ranges[0].startswith("bytes=10000-")


def test_the_next_run_goes_on_where_the_last_one_ended(served: FakeHub, tmp_path: Path) -> None:
    name = "model-00002-of-00002.safetensors"
    served.cut_after, served.cuts, served.knows_ranges = 10_000, 100, False
    fails("a connection that broke", name, "try again; it resumes")
    (partial,) = tmp_path.rglob("*.partial")
    assert partial.read_bytes() == served.files[name][:10_000]
    served.cut_after, served.knows_ranges = None, True
    assert formats.read(hub.resolve(ID)) == formats.read(tmp_path / "served")
    assert served.ranges == [f"bytes=10000-{len(served.files[name]) - 1}"]


def test_damaged_bytes_are_thrown_away(served: FakeHub, tmp_path: Path) -> None:
    served.damage = True
    fails("config.json", "another hash", "try again")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    served.damage = False
    assert formats.read(hub.resolve(ID)).config.n_layers == 2


def test_a_partial_file_of_other_bytes_is_found_out(served: FakeHub, tmp_path: Path) -> None:
    blobs = folder_of(tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    for n, raw in enumerate(served.files.values()):
        wrong = b"\0" * 1000 if n % 2 else raw + b"too long"
        for digest in (hashlib.sha256(raw), hashlib.sha1(b"blob %d\0" % len(raw) + raw)):
            (blobs / f"{digest.hexdigest()}.partial").write_bytes(wrong)
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
    shutil.rmtree(tmp_path / "cache")
    bad = [{**entry, "lfs": None, "blobId": "../../x"} for entry in whole["siblings"]]
    monkeypatch.setattr(served, "info", lambda: whole | {"siblings": bad})
    fails("an answer as the Hub gives it")


# ------------------------------------------------------------------------------------------------
# Front ends


def test_the_command_runs_a_model_by_its_id(served: FakeHub, tmp_path: Path) -> None:
    options = ("-p", "def", "-n", "2", "-t", "1")
    result = starcoder(served, tmp_path, "-m", ID, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def")
    result = starcoder(served, tmp_path, "-m", "owner/none", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("starcoder: error: owner/none: no such path")
    assert result.stderr.count("\n") == 1
