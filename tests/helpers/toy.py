"""Toy: an architecture in one file, as the next one will be added.

It has what GPTBigCode has not, and lacks what that has: a root mean square norm, a gate, a few
heads of keys and values for groups of queries, each of a matrix of its own, no biases, no position
table.

    x = token embedding                                           (n, dim)
    for each layer:
        x = x + output(attention(q(norm(x)), k(norm(x)), v(norm(x))))
        x = x + down(silu(gate(norm(x))) * up(norm(x)))
    logits = norm(x) @ output.T                                   (r, n_vocab), of `logit_rows`
"""

from __future__ import annotations

from starcoder.model.architecture import Architecture, Key, Role, Setting, TensorSpec, linear, norm
from starcoder.model.layers import Recorder

__all__ = ["TOY"]


def record(model: Recorder) -> None:
    """The steps of the model."""
    x = model.embed()
    for layer in range(model.config.n_layers):
        name = f"blk.{layer}"
        normed = model.rms_norm(f"{name}.attn_norm", x)
        parts = [f"{name}.attn_{part}" for part in "qkv"]
        mixed = model.attention(model.concat(*(model.linear(p, normed) for p in parts)), *parts)
        if layer == model.config.n_layers - 1:
            x, mixed = model.logit_rows(x), model.logit_rows(mixed)
        x = model.linear(f"{name}.attn_output", mixed, residual=x)
        normed = model.rms_norm(f"{name}.ffn_norm", x)
        gate, up = (model.linear(f"{name}.{part}", normed) for part in ("ffn_gate", "ffn_up"))
        hidden = model.gated(gate, up, activation=model.config.activation)
        x = model.linear(f"{name}.ffn_down", hidden, residual=x)
    model.logits(model.rms_norm("output_norm", x))


# fmt: off
_TENSORS = (
    TensorSpec("token_embd.weight", ("n_vocab", "dim"), Role.EMBEDDING, "embed_tokens.weight"),
    *norm("blk.*.attn_norm", hf="layers.*.input_layernorm", bias=False),
    *linear("blk.*.attn_q", ("dim", "dim"), Role.QUERIES,
            hf="layers.*.self_attn.q_proj", bias=False),
    *linear("blk.*.attn_k", ("kv_dim", "dim"), Role.KEYS,
            hf="layers.*.self_attn.k_proj", bias=False),
    *linear("blk.*.attn_v", ("kv_dim", "dim"), Role.VALUES,
            hf="layers.*.self_attn.v_proj", bias=False),
    *linear("blk.*.attn_output", ("dim", "dim"), Role.ATTENTION_OUTPUT,
            hf="layers.*.self_attn.o_proj", bias=False),
    *norm("blk.*.ffn_norm", hf="layers.*.post_attention_layernorm", bias=False),
    *linear("blk.*.ffn_gate", ("hidden_dim", "dim"), Role.MATRIX,
            hf="layers.*.mlp.gate_proj", bias=False),
    *linear("blk.*.ffn_up", ("hidden_dim", "dim"), Role.MATRIX,
            hf="layers.*.mlp.up_proj", bias=False),
    *linear("blk.*.ffn_down", ("dim", "hidden_dim"), Role.DOWN,
            hf="layers.*.mlp.down_proj", bias=False),
    *norm("output_norm", hf="norm", bias=False),
    TensorSpec("output.weight", ("n_vocab", "dim"), Role.OUTPUT, "lm_head.weight"),
)
_EPS = "attention.layer_norm_rms_epsilon"
_ACTIVATION = Key("hidden_act", "silu", str, {"silu": "silu"})
_SETTINGS = (
    #        field         config.json                          GGUF
    Setting("n_vocab",    Key("vocab_size"),                   None),
    Setting("n_ctx",      Key("max_position_embeddings"),      Key("context_length")),
    Setting("dim",        Key("hidden_size"),                  Key("embedding_length")),
    Setting("hidden_dim", Key("intermediate_size"),            Key("feed_forward_length")),
    Setting("n_layers",   Key("num_hidden_layers"),            Key("block_count")),
    Setting("n_heads",    Key("num_attention_heads"),          Key("attention.head_count")),
    Setting("n_kv_heads", Key("num_key_value_heads"),          Key("attention.head_count_kv")),
    Setting("norm_eps",   Key("rms_norm_eps", 1e-6, float),    Key(_EPS, kind=float)),
    Setting("activation", _ACTIVATION,                         _ACTIVATION),
)
# fmt: on

TOY = Architecture(
    name="toy",
    title="Toy",
    gguf="toy",
    hf="toy",
    hf_class="ToyForCausalLM",
    models="a model of the tests",
    tensors=_TENSORS,
    settings=_SETTINGS,
    record=record,
)
