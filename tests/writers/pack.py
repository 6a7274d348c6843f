"""Makes `tests/data/writers.tar.xz`: one tiny model as other programs write it.

    python -m tests.writers.pack --python transformers-5=PYTHON ... --gguf-split LLAMA_GGUF_SPLIT

Each PYTHON has some transformers, and peft or not; LLAMA_GGUF_SPLIT is llama.cpp's program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.helpers.gguf import write_gguf
from tests.helpers.hf import hf_weights, write_hf
from tests.helpers.tiny import make_tiny

HERE = Path(__file__).parent
ARCHIVE = HERE.parent / "data" / "writers.tar.xz"


def write_model(path: Path) -> None:
    """The tiny model with weights that bf16 holds, and all that transformers asks of its files."""
    model = make_tiny()
    model.weights = {
        n: (np.round(a * 128) / 128).astype(np.float32) for n, a in model.weights.items()
    }
    write_hf(path, model)
    write_gguf(path / "model.gguf", model)
    save_file(hf_weights(model), path / "model.safetensors", metadata={"format": "pt"})
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text()) | {"version": "1.0"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token in tokenizer["added_tokens"]:
        token |= flags
    nothing = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    tokenizer["model"] |= dict.fromkeys(nothing) | {"fuse_unk": False}
    byte_level = tokenizer["pre_tokenizer"]["pretokenizers"][-1]
    byte_level["trim_offsets"] = True
    tokenizer["decoder"] = byte_level | {"add_prefix_space": True}
    file.write_text(json.dumps(tokenizer))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    names["tokenizer_class"] = "GPT2TokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(names))


def split(program: str, model: Path, out: Path) -> None:
    """The parts of llama-gguf-split: by tensors; by size, with none in the first; merged again."""
    out.mkdir()

    def run(*args: object) -> None:
        subprocess.run([program, *map(str, args)], check=True, capture_output=True)

    run("--split", "--split-max-tensors", 8, model, out / "tensors")
    run("--split", "--no-tensor-first-split", "--split-max-size", "1M", model, out / "bare-first")
    run("--merge", min(out.glob("tensors-*")), out / "merged.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", required=True, metavar="NAME=PYTHON")
    parser.add_argument("--gguf-split", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model, out = Path(name, "model"), Path(name, "out")
        model.mkdir()
        out.mkdir()
        write_model(model)
        split(options.gguf_split, model / "model.gguf", out / "llama-gguf-split")
        (model / "model.gguf").unlink()
        for pair in options.python:
            folder, _, python = pair.partition("=")
            script = str(HERE / "with_transformers.py")
            # By relative names: transformers writes them down.
            command = [*python.split(), script, "model", f"out/{folder}"]
            subprocess.run(command, check=True, cwd=name)
        for readme in out.glob("*/*/README.md"):
            readme.unlink()  # not of ours
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            for path in sorted(out.iterdir()):
                archive.add(path, path.name, filter=_anonymous)
    print(f"{ARCHIVE}: {os.path.getsize(ARCHIVE):,} bytes")


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main()
