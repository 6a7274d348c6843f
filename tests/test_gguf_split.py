"""A GGUF model in several files: any part opens it, and a part that is wrong is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, WriteError, formats
from starcoder.model.checkpoint import Checkpoint
from tests.helpers.command import Run
from tests.helpers.gguf import Value, gguf_tensors, write_gguf
from tests.helpers.gguf_parts import U16, fails, part, read_parts, split, whole, write_part
from tests.helpers.tiny import TinyModel, make_tiny


@pytest.mark.parametrize("first_tensor", [0, 1])
def test_any_part_opens_the_whole(tmp_path: Path, tiny: TinyModel, first_tensor: int) -> None:
    expected = formats.read(whole(tmp_path, tiny))
    for path in split(tmp_path / "parts", tiny, 3, first_tensor):
        checkpoint = formats.read(path)
        assert checkpoint == expected
        assert (checkpoint.label, checkpoint.n_parts) == ("GGUF v3, 3 parts", 3)
        assert checkpoint.source == str(part(tmp_path / "parts", 1, 3))


def test_one_part_of_one_is_a_whole_under_any_name(tmp_path: Path, tiny: TinyModel) -> None:
    (path,) = split(tmp_path, tiny, 1)
    assert formats.read(path.rename(tmp_path / "other.gguf")) == formats.read(whole(tmp_path, tiny))


def test_a_merged_model_is_a_whole(tmp_path: Path, tiny: TinyModel) -> None:
    """llama-gguf-split leaves the keys of the first part, with a count of 0."""
    marks: dict[str, Any] = {
        "split.no": U16(0),
        "split.count": U16(0),
        "split.tensors.count": Value("i32", 28),
    }
    merged = write_gguf(tmp_path / "merged.gguf", tiny, keys=marks)
    assert formats.read(merged) == formats.read(whole(tmp_path, tiny))
    formats.write(tmp_path / "again.gguf", formats.read(merged))
    assert b"split." not in (tmp_path / "again.gguf").read_bytes()


def test_our_model_may_be_cut_anew_by_others(tmp_path: Path, tiny: TinyModel) -> None:
    """All keys of a model stay in the first part, also the one that says which set it was."""
    paths = split(tmp_path, tiny)
    tensors = gguf_tensors(tiny)
    marks = {"starcoder_py.split_id": Value("str", "1234")}
    write_part(tmp_path, tiny, 0, 3, tensors[: len(tensors) // 3], marks)
    assert formats.read(paths[1]) == formats.read(whole(tmp_path, tiny))


def test_the_parts_run_as_the_whole_does(tmp_path: Path, tiny: TinyModel) -> None:
    one, other = (
        LLM(path, n_threads=1).logits([7, 40, 261])
        for path in (split(tmp_path, tiny)[1], whole(tmp_path, tiny))
    )
    assert np.array_equal(one, other)


def test_links_to_the_parts_are_followed(tmp_path: Path, tiny: TinyModel) -> None:
    """The Hub's cache has links of the right names to blobs of others."""
    paths = split(tmp_path / "parts", tiny)
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(paths):
        blob = path.rename(tmp_path / "parts" / f"blob{i}")
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    found = formats.read(tmp_path / "snapshot" / paths[1].name)
    assert found == formats.read(whole(tmp_path, tiny))


def test_a_missing_part_is_named(tmp_path: Path, tiny: TinyModel) -> None:
    paths = split(tmp_path, tiny)
    for missing in (2, 0):
        paths[missing].rename(tmp_path / "away")
        fails(paths[1], paths[missing].name, f"no part {missing + 1} of 3", "one folder")
        (tmp_path / "away").rename(paths[missing])


def test_a_part_under_another_name_is_told_its_own(tmp_path: Path, tiny: TinyModel) -> None:
    paths = split(tmp_path, tiny)
    renamed = paths[1].rename(tmp_path / "model.gguf")
    fails(renamed, "part 2 of 3", "the name m-00002-of-00003.gguf", "rename it")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(renamed, alone)
    fails(alone / "model.gguf", "NAME-00002-of-00003.gguf, where NAME is that of the other parts")
    fails(renamed.rename(part(tmp_path, 3, 4)), "m-00002-of-00003.gguf")
    fails(part(tmp_path, 3, 4).rename(tmp_path / "m-00002-of-00003"), "m-00002-of-00003.gguf")


@pytest.mark.parametrize("out", ["m-00002-of-00003.gguf", "link.gguf"])
@pytest.mark.parametrize("task", ["convert", "quantize", "legacy"])
def test_a_model_is_not_written_over_a_part_of_itself(
    tmp_path: Path, tiny: TinyModel, run: Run, task: str, out: str
) -> None:
    paths = split(tmp_path, tiny)
    (tmp_path / "link.gguf").symlink_to(paths[1].name)
    before = [path.read_bytes() for path in paths]
    more = {"convert": [], "quantize": ["q8_0"], "legacy": ["--format", "ggml"]}[task]
    task = "convert" if task == "legacy" else task
    result = run(task, str(paths[0]), str(tmp_path / out), *more)
    assert (result.code, result.out) == (2, "")
    assert "a part of the model that is read, expected another name" in result.err.splitlines()[-1]
    assert [path.read_bytes() for path in paths] == before


def test_a_set_of_one_part_can_be_written_over_itself(
    tmp_path: Path, tiny: TinyModel, run: Run
) -> None:
    source = write_gguf(tmp_path / "m.gguf", tiny)
    only = part(tmp_path, 1, 1)
    assert run("convert", str(source), str(source), "--split-max-size", "9M").code == 0
    assert run("quantize", str(only), str(only), "q8_0").code == 0
    assert formats.read(only).type_name == "q8_0"


@pytest.mark.parametrize("n_renamed", range(6))
@pytest.mark.parametrize("error", [PermissionError, KeyboardInterrupt])
def test_what_fails_while_parts_are_renamed_brings_the_old_ones_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], n_renamed: int
) -> None:
    out = tmp_path / "m.gguf"
    formats.write(out, tiny_checkpoint(tmp_path, 1), max_part_bytes=60_000)
    before = {path: path.read_bytes() for path in read_parts(tmp_path)}
    assert len(before) == 3
    rename, n = os.rename, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal n
        if Path(source).name.startswith("m-") and (n := n + 1) > n_renamed:
            raise error(1, "no")
        rename(source, target)

    new = tiny_checkpoint(tmp_path, 2)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(WriteError if error is PermissionError else error):
        formats.write(out, new, max_part_bytes=60_000)
    assert {path: path.read_bytes() for path in read_parts(tmp_path)} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_parts_of_two_trainings_of_one_model_are_told_apart(tmp_path: Path) -> None:
    for name, seed in ("a", 1), ("b", 2):
        (tmp_path / name).mkdir()
        formats.write(
            tmp_path / name / "m.gguf", tiny_checkpoint(tmp_path, seed), max_part_bytes=60_000
        )
    shutil.copy(part(tmp_path / "b", 2, 3), tmp_path / "a")
    fails(part(tmp_path / "a", 1, 3), "a part of another model")


def test_parts_keep_the_permissions_of_those_they_replace(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    formats.write(out, tiny_checkpoint(tmp_path, 1), max_part_bytes=60_000)
    for path in read_parts(tmp_path):
        path.chmod(0o600)
    formats.write(out, tiny_checkpoint(tmp_path, 2), max_part_bytes=60_000)
    assert {path.stat().st_mode & 0o777 for path in read_parts(tmp_path)} == {0o600}


def tiny_checkpoint(folder: Path, seed: int) -> Checkpoint:
    return formats.read(write_gguf(folder / f"seed-{seed}.gguf", make_tiny(seed)))


def test_parts_of_an_older_set_are_told_of(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    paths = split(tmp_path, tiny)
    result = run("convert", str(paths[0]), str(tmp_path / "m.gguf"), "--split-max-size", "1M")
    assert result.code == 0
    assert f"of another set of parts there are still 3: {paths[0]}" in result.err
    assert all(path.exists() for path in paths)


def spoil(folder: Path, model: TinyModel, kind: str) -> Path:
    """Parts of which the third is wrong; returns it."""
    paths = split(folder, model)
    tensors = gguf_tensors(model)
    own = tensors[len(tensors) * 2 // 3 :]
    match kind:
        case "html":
            paths[2].write_text("<html>no such model</html>")
        case "whole":
            write_gguf(paths[2], model)
        case "twice":
            write_part(folder, model, 2, 3, [*own, tensors[0]])
        case "few":
            write_part(folder, model, 2, 3, own[1:])
        case "number":
            write_part(folder, model, 2, 3, own, {"split.no": U16(1)})
        case "count":
            write_part(folder, model, 2, 3, own, {"split.count": U16(4)})
        case "tensors":
            write_part(folder, model, 2, 3, own, {"split.tensors.count": Value("i32", 7)})
        case "other":
            write_part(folder, model, 2, 3, own, {"starcoder_py.split_id": Value("str", "1")})
        case "text":
            write_part(folder, model, 2, 3, own, {"split.no": Value("str", "2")})
        case _:
            os.truncate(paths[2], 40)
    return paths[2]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("html", ["00003-of-00003", "a web page"]),
        ("whole", ["00003-of-00003", "no part of a model", "part 3 of 3"]),
        ("twice", ["00003-of-00003", "token_embd.weight", "two parts"]),
        ("few", ["split.tensors.count", "27 tensors in 3 parts", "28"]),
        ("number", ["00003-of-00003", "part 2 of 3", "expected part 3 of 3"]),
        ("count", ["00003-of-00003", "part 3 of 4", "expected part 3 of 3"]),
        ("tensors", ["00003-of-00003", "7 tensors"]),
        ("other", ["00003-of-00003", "a part of another model"]),
        ("text", ["00003-of-00003", "split.no", "whole number"]),
        ("short", ["00003-of-00003", "that are left of the file"]),
    ],
)
def test_a_foreign_part_is_named(
    tmp_path: Path, tiny: TinyModel, kind: str, words: list[str]
) -> None:
    spoil(tmp_path, tiny, kind)
    fails(part(tmp_path, 1, 3), *words)


@pytest.mark.parametrize(
    "marks",
    [
        {"split.no": U16(3)},
        {"split.count": Value("u32", 1 << 20)},
        {"split.no": Value("i32", -1)},
        {"split.count": None},
        {"split.no": None},
        {"split.tensors.count": None},
        {"split.tensors.count": Value("i32", -5)},
    ],
)
def test_nonsense_of_parts_is_refused(
    tmp_path: Path, tiny: TinyModel, marks: dict[str, Any]
) -> None:
    split(tmp_path, tiny)
    tensors = gguf_tensors(tiny)
    fails(write_part(tmp_path, tiny, 0, 3, tensors[: len(tensors) // 3], marks), "split.")


def test_headers_of_all_parts_are_bounded_together(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = split(tmp_path, tiny)
    from starcoder.formats.gguf import parts

    monkeypatch.setattr(parts, "MAX_HEADER", 15_000)  # more than each, less than all
    large = {"x.text": Value("str", "x" * 9000)}
    tensors = gguf_tensors(tiny)
    write_part(tmp_path, tiny, 2, 3, tensors[len(tensors) * 2 // 3 :], large)
    fails(paths[0], "00003-of-00003", "header")
