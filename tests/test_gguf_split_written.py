"""A GGUF model written in several files, by Python and by the commands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starcoder import InputError, WriteError, formats
from tests.helpers.command import Run
from tests.helpers.gguf import gguf_keys, write_gguf
from tests.helpers.gguf_parts import fails, part, read_parts, split, whole
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel, make_tiny

# ------------------------------------------------------------------------------------------------
# Written


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
    fails(part(tmp_path / "a", 1, count), f"00002-of-{count:05}", "another model")


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
        fails(path, paths[0].name, "no part 1 of")
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
