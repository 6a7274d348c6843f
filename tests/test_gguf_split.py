"""A GGUF model in several files: any part opens it, and a part that is wrong is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, FormatError, InputError, WriteError, formats
from starcoder.checkpoint import Checkpoint
from tests.helpers.command import Run
from tests.helpers.gguf import Value, gguf_keys, gguf_tensors, write_gguf
from tests.helpers.gguf_parts import U16, part, split, write_part
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel, make_tiny


def whole(tmp_path: Path, model: TinyModel) -> Path:
    return write_gguf(tmp_path / "whole.gguf", model)


# ------------------------------------------------------------------------------------------------
# Read


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


def refused(path: Path, *words: str) -> None:
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path, tiny: TinyModel) -> None:
    paths = split(tmp_path, tiny)
    for missing in (2, 0):
        paths[missing].rename(tmp_path / "away")
        refused(paths[1], paths[missing].name, f"no part {missing + 1} of 3", "one folder")
        (tmp_path / "away").rename(paths[missing])


def test_a_part_under_another_name_is_told_its_own(tmp_path: Path, tiny: TinyModel) -> None:
    paths = split(tmp_path, tiny)
    renamed = paths[1].rename(tmp_path / "model.gguf")
    refused(renamed, "part 2 of 3", "the name m-00002-of-00003.gguf", "rename it")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(renamed, alone)
    refused(alone / "model.gguf", "NAME-00002-of-00003.gguf, where NAME is that of the other parts")
    refused(renamed.rename(part(tmp_path, 3, 4)), "m-00002-of-00003.gguf")
    refused(part(tmp_path, 3, 4).rename(tmp_path / "m-00002-of-00003"), "m-00002-of-00003.gguf")


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
    refused(part(tmp_path / "a", 1, 3), "a part of another model")


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
    refused(part(tmp_path, 1, 3), *words)


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
    refused(write_part(tmp_path, tiny, 0, 3, tensors[: len(tensors) // 3], marks), "split.")


def test_headers_of_all_parts_are_bounded_together(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = split(tmp_path, tiny)
    from starcoder.formats import _gguf_parts

    monkeypatch.setattr(_gguf_parts, "MAX_HEADER", 15_000)  # more than each, less than all
    large = {"x.text": Value("str", "x" * 9000)}
    tensors = gguf_tensors(tiny)
    write_part(tmp_path, tiny, 2, 3, tensors[len(tensors) * 2 // 3 :], large)
    refused(paths[0], "00003-of-00003", "header")


# ------------------------------------------------------------------------------------------------
# Written


def read_parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.gguf"))


@pytest.mark.parametrize("max_part_bytes", [1, 20_000, 60_000, 1 << 30])
def test_written_parts_are_the_model(tmp_path: Path, tiny: TinyModel, max_part_bytes: int) -> None:
    checkpoint = formats.read(whole(tmp_path, tiny))
    out = tmp_path / "out"
    out.mkdir()
    nbytes = formats.write(out / "m.gguf", checkpoint, max_part_bytes=max_part_bytes)
    paths = read_parts(out)
    expected = formats.part_paths(out / "m.gguf", checkpoint, checkpoint.tensors, max_part_bytes)
    assert paths == expected == sorted(out.iterdir())
    assert sum(path.stat().st_size for path in paths) == nbytes
    for path in paths:
        assert formats.read(path) == checkpoint


def test_other_readers_find_what_llama_cpp_wants(tmp_path: Path, tiny: TinyModel) -> None:
    gguf = pytest.importorskip("gguf")
    formats.write(tmp_path / "m.gguf", formats.read(whole(tmp_path, tiny)), max_part_bytes=60_000)
    paths, names = read_parts(tmp_path), []
    for i, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        field = reader.fields
        assert [field["split.no"].contents(), field["split.count"].contents()] == [i, len(paths)]
        assert [t.name for t in field["split.no"].types] == ["UINT16"]
        assert [t.name for t in field["split.count"].types] == ["UINT16"]
        assert field["split.tensors.count"].contents() == len(tiny.weights)
        assert [t.name for t in field["split.tensors.count"].types] == ["INT32"]
        assert ("general.architecture" in field) is (i == 0)
        names += [tensor.name for tensor in reader.tensors]
    assert sorted(names) == sorted(tiny.weights)


def test_parts_that_the_gguf_package_writes_are_read(tmp_path: Path, tiny: TinyModel) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(None, "starcoder", split_max_tensors=10)
    add = {"u32": writer.add_uint32, "f32": writer.add_float32, "str": writer.add_string}
    for key, value in gguf_keys(tiny).items():
        if key != "general.architecture":
            is_list = isinstance(value.value, list)
            (writer.add_array if is_list else add[value.type])(key, value.value)
    for name, array in tiny.weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file(tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(read_parts(tmp_path)) == 3
    expected = formats.read(whole(tmp_path, tiny))
    for path in read_parts(tmp_path):
        assert formats.read(path) == expected


def test_the_same_input_gives_the_same_parts(tmp_path: Path, tiny: TinyModel) -> None:
    checkpoint = formats.read(whole(tmp_path, tiny))
    raws = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        formats.write(tmp_path / name / "m.gguf", checkpoint, max_part_bytes=60_000)
        raws.append([path.read_bytes() for path in read_parts(tmp_path / name)])
    assert raws[0] == raws[1]


def test_parts_of_two_types_are_no_model(tmp_path: Path, tiny: TinyModel) -> None:
    """Same names, same number of parts; llama.cpp would run the mixture."""
    for name, changed in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        checkpoint = formats.read(whole(tmp_path, tiny))
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, name=changed))
        source = replace(checkpoint, carried={})
        formats.write(tmp_path / name / "m.gguf", source, max_part_bytes=60_000)
    count = len(read_parts(tmp_path / "a"))
    shutil.copy(part(tmp_path / "b", 2, count), tmp_path / "a")
    refused(part(tmp_path / "a", 1, count), f"00002-of-{count:05}", "another model")


def test_a_set_may_be_written_over_itself(tmp_path: Path, tiny: TinyModel) -> None:
    expected = formats.read(whole(tmp_path, tiny))
    paths = split(tmp_path / "p", tiny, 3)
    for max_part_bytes in (40_000, 80_000, 80_000):
        source = formats.read(paths[0])
        formats.write(paths[0], source, max_part_bytes=max_part_bytes)
        paths = formats.part_paths(paths[0], source, source.tensors, max_part_bytes)
        assert formats.read(paths[-1]) == expected


def test_parts_of_another_number_are_not_mistaken(tmp_path: Path, tiny: TinyModel) -> None:
    expected: dict[Path, np.ndarray] = {}
    for model, size in ((make_tiny(1), 60_000), (tiny, 80_000)):
        checkpoint = formats.read(whole(tmp_path, model))
        formats.write(tmp_path / "m.gguf", checkpoint, max_part_bytes=size)
        paths = formats.part_paths(tmp_path / "m.gguf", checkpoint, checkpoint.tensors, size)
        expected |= dict.fromkeys(paths, model.weights["output_norm.bias"])
    assert len({path.name[-10:] for path in expected}) == 2
    for path, bias in expected.items():
        assert np.array_equal(formats.read(path).tensors["output_norm.bias"].array(), bias)


def test_what_ends_writing_leaves_the_old_parts(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = split(tmp_path, make_tiny(1))
    before = [path.read_bytes() for path in paths]
    checkpoint = formats.read(whole(tmp_path, tiny))

    def stop(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        formats.write(paths[0], checkpoint, max_part_bytes=60_000, on_bytes=stop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(WriteError, match=r"1 bytes free, expected room for .* in all parts"):
        formats.write(paths[0], checkpoint, max_part_bytes=60_000)
    assert [path.read_bytes() for path in paths] == before
    assert {*tmp_path.iterdir()} == {*paths, tmp_path / "whole.gguf"}


KILLED = """
import os, signal, sys
from starcoder import formats
from starcoder.formats import _write_parts
rename, left = os.rename, int(sys.argv[3])
def killed(*args):
    global left
    if os.path.basename(os.path.dirname(args[1])) == "out":  # under its name
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    rename(*args)
os.rename = killed
formats.write(sys.argv[2], formats.read(sys.argv[1]), max_part_bytes=60_000)
"""

KILLED_WRITING = """
stop = lambda n: os.kill(os.getpid(), signal.SIGKILL)
source = formats.read(sys.argv[1])
formats.write(sys.argv[2], source, max_part_bytes=60_000, on_bytes=stop)
"""


@pytest.mark.parametrize("n_renamed", [0, 1, 2])
def test_a_kill_never_leaves_a_mixture_that_opens(
    tmp_path: Path, tiny: TinyModel, n_renamed: int
) -> None:
    """Killed before the renaming of a part: the set before is whole, or has no first part."""
    source, out = whole(tmp_path, tiny), tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    old = formats.read(write_gguf(tmp_path / "old.gguf", make_tiny(1)))
    formats.write(out, old, max_part_bytes=60_000)
    paths = read_parts(out.parent)
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(n_renamed)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    for path in read_parts(out.parent):
        refused(path, paths[0].name, "no part 1 of")
    formats.write(out, old, max_part_bytes=60_000)
    assert sorted(out.parent.iterdir()) == paths  # and what the killed run left is gone
    assert formats.read(paths[0]) == old


def test_a_kill_while_bytes_are_written_leaves_the_old_set(tmp_path: Path, tiny: TinyModel) -> None:
    source, out = whole(tmp_path, tiny), tmp_path / "m.gguf"
    old = formats.read(write_gguf(tmp_path / "old.gguf", make_tiny(1)))
    formats.write(out, old, max_part_bytes=60_000)
    code = KILLED.split("rename, left")[0] + KILLED_WRITING
    result = subprocess.run([sys.executable, "-c", code, str(source), str(out)])
    assert result.returncode == -signal.SIGKILL
    for path in read_parts(tmp_path):
        assert formats.read(path) == old


def test_two_writers_of_one_set_leave_one_of_them(tmp_path: Path, tiny: TinyModel) -> None:
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    sources = [write_gguf(tmp_path / f"{i}.gguf", make_tiny(i)) for i in range(2)]
    code = "import sys; from starcoder import formats; source = formats.read(sys.argv[1])\n"
    code += "for _ in range(20): formats.write(sys.argv[2], source, max_part_bytes=60_000)"
    commands = [[sys.executable, "-c", code, str(source), str(out)] for source in sources]
    runs = [subprocess.Popen(command) for command in commands]
    assert [run.wait() for run in runs] == [0, 0]
    paths = read_parts(out.parent)
    assert sorted(out.parent.iterdir()) == paths
    assert formats.read(paths[1]) in [formats.read(source) for source in sources]


def test_a_legacy_file_is_never_cut(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    source = write_legacy(tmp_path / "in.bin", tiny)
    with pytest.raises(InputError, match="legacy"):
        formats.write(tmp_path / "x.bin", formats.read(source), legacy=True, max_part_bytes=1)
    for command in (("convert", "out.bin"), ("quantize", "out.bin", "q4_0")):
        name, out, *rest = command
        arguments = (str(source), str(tmp_path / out), *rest, "--split-max-size", "1M")
        result = run(name, *arguments)
        assert (result.code, "legacy file in parts" in result.err) == (2, True)
    assert [*tmp_path.iterdir()] == [source]


# ------------------------------------------------------------------------------------------------
# The commands


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_commands_write_parts_and_join_them(
    tmp_path: Path, data: Path, run: Run, command: str
) -> None:
    source = data / "gpt_bigcode-q4_0.gguf"
    options = ("--type", "f32") if command == "convert" else ("f32",)
    out, joined = tmp_path / "m.gguf", tmp_path / "joined.gguf"
    result = run(command, str(source), str(out), *options, "--split-max-size", "3M")
    paths = read_parts(tmp_path)
    assert result.code == 0, result.err
    assert len(paths) > 2
    assert f"wrote {len(paths)} parts, the first {paths[0]}" in result.err
    assert max(path.stat().st_size for path in paths) < 3.2e6
    assert run(command, str(paths[1]), str(joined), *options).code == 0
    single = tmp_path / "single.gguf"
    assert run(command, str(source), str(single), *options).code == 0
    assert formats.read(joined) == formats.read(single) == formats.read(paths[0])


@pytest.mark.parametrize("size", ["", "0M", "5", "5K", "-1G", "1.5G", "9999999G", "x"])
def test_a_size_that_is_none_is_one_line(
    tmp_path: Path, tiny: TinyModel, run: Run, size: str
) -> None:
    args = (str(whole(tmp_path, tiny)), str(tmp_path / "o.gguf"), f"--split-max-size={size}")
    result = run("convert", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "expected a whole number and M or G" in result.err


def test_inspect_says_how_many_parts(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    path = str(split(tmp_path, tiny)[2])
    assert "format         GGUF v3, 3 parts" in run("inspect", path).out.splitlines()
    facts = json.loads(run("inspect", path, "--json", "--check").out)
    assert (facts["n_parts"], facts["finite"], len(facts["tensors"])) == (3, True, 28)


def test_generate_and_bench_take_a_part(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    path = str(split(tmp_path, tiny)[1])
    options = ("-p", "def f", "-n", "4", "--temp", "0", "--ignore-eos")
    texts = [run("-m", m, *options).out for m in (path, str(whole(tmp_path, tiny)))]
    assert texts[0] == texts[1] != ""
    bench = run("bench", "-m", path, "-p", "4", "-n", "2", "-r", "1", "--json")
    assert bench.code == 0
