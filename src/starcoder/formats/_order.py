"""The order in which writers put tensors into a file: embeddings, final norm, layers, output."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["tensor_order"]

_FIRST = ("token_embd", "position_embd", "output_norm")
_IN_LAYER = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
_KINDS = ("weight", "bias")


def tensor_order(names: Iterable[str]) -> list[str]:
    """Canonical names, as ggml's and llama.cpp's converters order them."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, int, int]:
    """Place of the layer, in the layer, of the kind; `output` comes after all layers."""
    *path, kind = name.split(".")
    if path[0] == "blk":
        return int(path[1]), _IN_LAYER.index(path[2]), _KINDS.index(kind)
    if path[0] in _FIRST:
        return -1, _FIRST.index(path[0]), _KINDS.index(kind)
    return 1 << 30, 0, _KINDS.index(kind)
