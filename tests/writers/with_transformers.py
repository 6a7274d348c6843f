"""Folders that transformers and peft write of one tiny model, and the logits they give for it.

    python with_transformers.py MODEL OUT

runs where those are installed, of whichever version. MODEL is a folder of that model. OUT gets one
folder for each way of saving, `logits.npz`: some ids and what the model answers, and `tokens.json`:
what the tokenizer of each folder makes of some texts.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, GPTBigCodeForCausalLM, PreTrainedTokenizerFast

IDS = [5, 70, 300, 0, 17, 301, 302, 9, 1, 44]
TEXTS = (
    "def add(first, second):\n    return first + 2048\n",
    "größer 22 a1b\t333 🦀 naïve",
    "<fim_prefix>class Number<fim_suffix>\n<fim_middle>",
)
MAJOR = int(transformers.__version__.partition(".")[0])


def save_all(source: Path, out: Path) -> None:
    model = GPTBigCodeForCausalLM.from_pretrained(source, torch_dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].numpy()
    np.savez(out / "logits.npz", ids=IDS, logits=logits)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        eos_token="<|endoftext|>",
        additional_special_tokens=["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"],
    )
    for name, options in ways():
        model.save_pretrained(out / name, **options)
        tokenizer.save_pretrained(out / name)
    save_trained(model, tokenizer, out)
    padded = AutoTokenizer.from_pretrained(source)
    padded.add_special_tokens({"pad_token": "[PAD]"})  # and the embedding is not resized
    padded.add_tokens([f"<extra_{i}>" for i in range(20)])
    model.save_pretrained(out / "pad")
    padded.save_pretrained(out / "pad")
    save_slow(model, source, out / "slow")
    save_with_peft(source, tokenizer, out)
    model.to(torch.bfloat16).save_pretrained(out / "bf16")
    tokenizer.save_pretrained(out / "bf16")
    ids = {folder.name: tokens(folder) for folder in out.iterdir() if folder.is_dir()}
    (out / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}))


def tokens(folder: Path) -> list[list[int]] | None:
    """The ids of each of TEXTS; None where transformers cannot read its own vocab.json any more."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except ValueError:
        return None
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def ways() -> Iterator[tuple[str, dict[str, object]]]:
    """Names of folders, and how `save_pretrained` is called."""
    yield "safetensors", {}
    yield "safetensors-shards", {"max_shard_size": "40KB"}
    if MAJOR < 5:
        yield "bin", {"safe_serialization": False}
        yield "bin-shards", {"safe_serialization": False, "max_shard_size": "40KB"}


def save_trained(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """As trainers leave it: the wrapper's prefix in every name, in a file of torch's own."""
    for name, prefix in ("data-parallel", "module."), ("bare", "-transformer."):
        folder = out / name
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        table = model.state_dict()
        if prefix.startswith("-"):
            table = {k.removeprefix(prefix[1:]): v for k, v in table.items()}
        else:
            table = {prefix + k: v for k, v in table.items()}
        torch.save(table, folder / "pytorch_model.bin")


def save_slow(model: torch.nn.Module, source: Path, folder: Path) -> None:
    """With vocab.json and merges.txt, as the tokenizers written in Python save them."""
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    if MAJOR < 5:
        tokenizer.save_pretrained(folder, legacy_format=True)
        (folder / "tokenizer.json").unlink(missing_ok=True)
    else:
        tokenizer.backend_tokenizer.model.save(str(folder))
        shutil.copy(source / "tokenizer_config.json", folder)
    assert (folder / "merges.txt").exists()


def save_with_peft(source: Path, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """An adapter that changes nothing yet (its B is zero): alone, and merged."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return
    base = GPTBigCodeForCausalLM.from_pretrained(source, torch_dtype=torch.float32)
    lora = LoraConfig(target_modules=["c_attn"], r=2, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(out / "adapter")
    tokenizer.save_pretrained(out / "adapter")
    adapted.merge_and_unload().save_pretrained(out / "merged")
    tokenizer.save_pretrained(out / "merged")


if __name__ == "__main__":
    target = Path(sys.argv[2])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_all(Path(sys.argv[1]), target)
