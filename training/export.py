"""From a checkpoint to the model in the wheel: a Hugging Face directory, then GGUF files.

The files are made by starcoder's own commands. `check_transformers` holds the logits of starcoder
against those of `transformers` on the same directory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.shape import Shape

NAME = "starcoder-pocket"
WHEEL_BYTES = 8_000_000  # the most that the shipped file may have
LARGEST_DIVERGENCE = 1e-5  # nats a token: keys and values are kept in f16 here, in f32 there


def export(checkpoint: Path, vocabulary: Path, out: Path) -> dict[str, Path]:
    """Write `out/starcoder-pocket/` (Hugging Face), and f32 and q8_0 GGUF files beside it.

    Returns:
        The paths, by "hf", "f32" and "q8_0".

    Raises:
        ValueError: a file that is too large for the wheel.
    """
    directory = out / NAME
    directory.mkdir(parents=True, exist_ok=True)
    state = torch.load(checkpoint, weights_only=True)
    save_file(state["model"], directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(
        json.dumps(_config(Shape(**state["plan"]["shape"])), indent=2) + "\n"
    )
    (directory / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    end = "<|endoftext|>"
    tokens = {"bos_token": end, "eos_token": end, "unk_token": end}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens}, indent=2) + "\n"
    )
    paths = {"hf": directory, "f32": out / f"{NAME}-f32.gguf", "q8_0": out / f"{NAME}-q8_0.gguf"}
    for path in (paths["f32"], paths["q8_0"]):
        path.unlink(missing_ok=True)
    _starcoder("convert", directory, paths["f32"], "--type", "f32")
    _starcoder("quantize", paths["f32"], paths["q8_0"], "q8_0")
    size = paths["q8_0"].stat().st_size
    if size > WHEEL_BYTES:
        raise ValueError(
            f"{paths['q8_0']} has {size} bytes, the wheel has room for {WHEEL_BYTES}: "
            "take a smaller shape"
        )
    return paths


def check_transformers(paths: dict[str, Path], text: str) -> dict[str, float]:
    """How far the logits of starcoder are from those of `transformers`, on one text.

    Returns:
        The largest difference of a logit, and the mean KL divergence in nats a token.

    Raises:
        ValueError: other token ids, or a divergence that is no rounding.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from starcoder import LLM

    theirs = AutoModelForCausalLM.from_pretrained(paths["hf"], dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(paths["hf"])(text)["input_ids"][:512]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    ours = LLM(paths["f32"])
    if ours.tokenize(text)[: len(ids)] != ids:
        raise ValueError("the tokenizers of transformers and starcoder disagree")
    found = torch.from_numpy(ours.logits(ids))
    p, q = (x.double().log_softmax(-1) for x in (expected, found))
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    if divergence > LARGEST_DIVERGENCE:
        raise ValueError(
            f"logits diverge by {divergence:.2g} nats, expected at most {LARGEST_DIVERGENCE}"
        )
    return {"difference": float((found - expected).abs().max()), "divergence": divergence}


def _starcoder(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "starcoder", *map(str, arguments)], check=True)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "_name_or_path": NAME,
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 0,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt_bigcode",
        "multi_query": True,
        "n_embd": shape.n_embd,
        "n_head": shape.n_head,
        "n_inner": shape.n_inner,
        "n_layer": shape.n_layer,
        "n_positions": shape.n_positions,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
