"""GPTBigCode: SantaCoder, StarCoder, StarCoderBase and their fine-tunes.

A GPT-2 with one head of keys and values that all query heads share (multi-query attention):

    x = token embedding + position embedding                      (n, dim)
    for each layer:
        x = x + output(attention(qkv(norm(x))))
        x = x + down(gelu(up(norm(x))))
    logits = norm(x) @ embedding.T                                (r, n_vocab), of `logit_rows`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starcoder.model.architecture import Architecture, Key, Role, Setting, TensorSpec, linear, norm
from starcoder.model.config import ACTIVATION_NAMES, ModelConfig
from starcoder.model.layers import Recorder

__all__ = ["GPT_BIGCODE"]


def record(model: Recorder) -> None:
    """The steps of the model."""
    x = model.embed()
    for layer in range(model.config.n_layers):
        name = f"blk.{layer}"
        qkv = model.linear(f"{name}.attn_qkv", model.norm(f"{name}.attn_norm", x))
        mixed = model.attention(qkv, f"{name}.attn_qkv")
        if layer == model.config.n_layers - 1:  # no later layer attends to the other rows
            x, mixed = model.logit_rows(x), model.logit_rows(mixed)
        x = model.linear(f"{name}.attn_output", mixed, residual=x)
        normed = model.norm(f"{name}.ffn_norm", x)
        hidden = model.linear(f"{name}.ffn_up", normed, activation=model.config.activation)
        x = model.linear(f"{name}.ffn_down", hidden, residual=x)
    model.logits(model.norm("output_norm", x))


def _n_kv_heads(multi_query: bool, known: Mapping[str, Any]) -> int:
    return 1 if multi_query else int(known["n_heads"])


def _hf_demands(config: ModelConfig) -> dict[str, tuple[Any, ...]]:
    return {"scale_attn_weights": (True,), "num_key_value_heads": (config.n_kv_heads, None)}


_SANTACODER = ("the original SantaCoder", "use its converted twin, bigcode/gpt_bigcode-santacoder")

# fmt: off
_TENSORS = (
    TensorSpec("token_embd.weight", ("n_vocab", "dim"), Role.EMBEDDING, "wte.weight", "wte"),
    TensorSpec("position_embd.weight", ("n_ctx", "dim"), Role.POSITIONS, "wpe.weight", "wpe"),
    *norm("output_norm", hf="ln_f", legacy="ln_f"),
    *norm("blk.*.attn_norm", hf="h.*.ln_1", legacy="h*/ln_1"),
    *linear("blk.*.attn_qkv", ("qkv_dim", "dim"), Role.QKV,
            hf="h.*.attn.c_attn", legacy="h*/attn/c_attn", hf_by_head=True),
    *linear("blk.*.attn_output", ("dim", "dim"), Role.ATTENTION_OUTPUT,
            hf="h.*.attn.c_proj", legacy="h*/attn/c_proj"),
    *norm("blk.*.ffn_norm", hf="h.*.ln_2", legacy="h*/ln_2"),
    *linear("blk.*.ffn_up", ("hidden_dim", "dim"), Role.MATRIX,
            hf="h.*.mlp.c_fc", legacy="h*/mlp/c_fc"),
    *linear("blk.*.ffn_down", ("dim", "hidden_dim"), Role.DOWN,
            hf="h.*.mlp.c_proj", legacy="h*/mlp/c_proj"),
    TensorSpec("output.weight", ("n_vocab", "dim"), Role.OUTPUT, "lm_head.weight", "lm_head"),
)
_INNER = Key("n_inner", lambda known: 4 * known["dim"])
_MULTI_QUERY = Key("multi_query", True, bool, meaning=_n_kv_heads)
# In GGUF files a key of ours; llama.cpp writes none and always takes the tanh form.
_ACTIVATION = Key("activation_function", "gelu_pytorch_tanh", str, ACTIVATION_NAMES)
_SETTINGS = (
    #        field         config.json         GGUF
    Setting("n_vocab",    Key("vocab_size"),  None),
    Setting("n_ctx",      Key("n_positions"), Key("context_length")),
    Setting("dim",        Key("n_embd"),      Key("embedding_length")),
    Setting("hidden_dim", _INNER,             Key("feed_forward_length")),
    Setting("n_layers",   Key("n_layer"),     Key("block_count")),
    Setting("n_heads",    Key("n_head"),      Key("attention.head_count")),
    Setting("n_kv_heads", _MULTI_QUERY,       Key("attention.head_count_kv", 1)),
    Setting("norm_eps",   Key("layer_norm_epsilon", 1e-5, float),
                          Key("attention.layer_norm_epsilon", kind=float)),
    Setting("activation", _ACTIVATION, _ACTIVATION),
)
# fmt: on

GPT_BIGCODE = Architecture(
    name="gpt_bigcode",
    title="GPTBigCode",
    gguf="starcoder",
    hf="gpt_bigcode",
    hf_class="GPTBigCodeForCausalLM",
    models="StarCoder, StarCoderBase, SantaCoder and their fine-tunes",
    tensors=_TENSORS,
    settings=_SETTINGS,
    record=record,
    hf_demands=_hf_demands,
    hf_needless=("attn.bias", "attn.masked_bias"),
    hf_foreign=dict.fromkeys(("q_attn", "kv_attn"), _SANTACODER),
)
