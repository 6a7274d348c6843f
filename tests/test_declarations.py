"""Declarations of architectures, held against the names that other programs write."""

from __future__ import annotations

import pytest

from starcoder.model import models
from starcoder.model.architecture import Architecture, Role
from starcoder.model.config import ModelConfig
from starcoder.model.gpt_bigcode import GPT_BIGCODE

# GGUF's by llama.cpp's constants, Hugging Face's by transformers, the last by ggml's converter.
NAMES = """
token_embd.weight         wte.weight              wte
position_embd.weight      wpe.weight              wpe
output_norm.weight        ln_f.weight             ln_f/g
output_norm.bias          ln_f.bias               ln_f/b
blk.3.attn_norm.weight    h.3.ln_1.weight         h3/ln_1/g
blk.3.attn_norm.bias      h.3.ln_1.bias           h3/ln_1/b
blk.3.attn_qkv.weight     h.3.attn.c_attn.weight  h3/attn/c_attn/w
blk.3.attn_qkv.bias       h.3.attn.c_attn.bias    h3/attn/c_attn/b
blk.3.attn_output.weight  h.3.attn.c_proj.weight  h3/attn/c_proj/w
blk.3.attn_output.bias    h.3.attn.c_proj.bias    h3/attn/c_proj/b
blk.3.ffn_norm.weight     h.3.ln_2.weight         h3/ln_2/g
blk.3.ffn_norm.bias       h.3.ln_2.bias           h3/ln_2/b
blk.3.ffn_up.weight       h.3.mlp.c_fc.weight     h3/mlp/c_fc/w
blk.3.ffn_up.bias         h.3.mlp.c_fc.bias       h3/mlp/c_fc/b
blk.3.ffn_down.weight     h.3.mlp.c_proj.weight   h3/mlp/c_proj/w
blk.3.ffn_down.bias       h.3.mlp.c_proj.bias     h3/mlp/c_proj/b
output.weight             lm_head.weight          lm_head
"""


def test_the_names_and_the_order_of_gpt_bigcode_are_those_of_other_programs() -> None:
    specs = GPT_BIGCODE.specs(4).values()
    found = [(s.name, s.hf, s.legacy) for s in specs if s.layer in (None, 3)]
    assert found == [tuple(line.split()) for line in NAMES.strip().splitlines()]


def test_the_keys_of_gpt_bigcode_are_those_of_other_programs() -> None:
    assert {s.field: (s.hf.name, s.gguf and s.gguf.name) for s in GPT_BIGCODE.settings} == {
        "n_vocab": ("vocab_size", None),
        "n_ctx": ("n_positions", "context_length"),
        "dim": ("n_embd", "embedding_length"),
        "hidden_dim": ("n_inner", "feed_forward_length"),
        "n_layers": ("n_layer", "block_count"),
        "n_heads": ("n_head", "attention.head_count"),
        "n_kv_heads": ("multi_query", "attention.head_count_kv"),
        "norm_eps": ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        "activation": ("activation_function", "activation_function"),
    }


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_a_declaration_is_whole(name: str) -> None:
    architecture: Architecture = models.ARCHITECTURES[name]
    assert architecture.name == name
    names = [(spec.name, spec.hf) for spec in architecture.specs(2).values()]
    assert len({n for n, _ in names}) == len({hf for _, hf in names}) == len(names)
    for role in (Role.EMBEDDING, Role.OUTPUT):
        assert architecture.name_of(role)
    fields = set(ModelConfig.__dataclass_fields__)
    assert {setting.field for setting in architecture.settings} <= fields
    for spec in architecture.tensors:
        assert all(hasattr(ModelConfig, axis) for axis in spec.axes), spec.name


def test_tensors_that_are_not_declared_are_written_last() -> None:
    names = ["blk.999999999.x", "output.weight", "rest", "blk.0.ffn_up.bias", "token_embd.weight"]
    found = list(GPT_BIGCODE.in_order(dict.fromkeys(names, 0), 1))
    assert found == [
        "token_embd.weight",
        "blk.0.ffn_up.bias",
        "output.weight",
        "blk.999999999.x",
        "rest",
    ]
