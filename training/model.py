"""GPTBigCode in PyTorch: multi-query attention, learned positions, tanh GELU, tied output.

The names of the parameters are Hugging Face's, so that exporting is saving. The matrices of the
layers are multiplied as they are, or as q4_0 rounds them (`grid`). Training alone uses this module;
what runs the model afterwards is starcoder itself.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from training import grid
from training.shape import Shape


class Matrix(nn.Linear):
    """A linear layer that multiplies with its weights on q4_0's grid once `rounded` is set."""

    rounded = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight = grid.straight_through(self.weight) if self.rounded else self.weight
        return functional.linear(x, weight, self.bias)


class Attention(nn.Module):
    """All query heads against one key/value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.head_dim = shape.n_embd // shape.n_head
        self.c_attn = Matrix(shape.n_embd, shape.n_embd + 2 * self.head_dim)
        self.c_proj = Matrix(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, n_embd) -> the same."""
        batch, tokens, width = x.shape
        q, k, v = self.c_attn(x).split((width, self.head_dim, self.head_dim), dim=-1)
        q = q.view(batch, tokens, self.n_head, self.head_dim).transpose(1, 2)
        k, v = (part.unsqueeze(1).expand(-1, self.n_head, -1, -1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention, then up, tanh GELU, down; each after a norm and added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        up, down = Matrix(shape.n_embd, shape.n_inner), Matrix(shape.n_inner, shape.n_embd)
        self.mlp = nn.ModuleDict({"c_fc": up, "c_proj": down})

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, n_embd) -> the same."""
        x = x + self.attn(self.ln_1(x))
        h = functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](h)


class GPTBigCode(nn.Module):
    """The whole model, from token ids (batch, tokens) to hidden states or a loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocab_size, shape.n_embd),
                "wpe": nn.Embedding(shape.n_positions, shape.n_embd),
                "h": nn.ModuleList(Block(shape) for _ in range(shape.n_layer)),
                "ln_f": nn.LayerNorm(shape.n_embd, eps=1e-5),
            }
        )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "ln_" not in name:
                last = name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * shape.n_layer) if last else 0.02
                nn.init.normal_(parameter, std=std)

    def set_rounded(self, on: bool) -> None:
        """Multiply with the layers' matrices as q4_0 rounds them, or as they are."""
        for module in self.modules():
            if isinstance(module, Matrix):
                module.rounded = on

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (batch, tokens, n_embd) after the last norm, of ids (batch, tokens)."""
        t = self.transformer
        x = t["wte"](ids) + t["wpe"].weight[: ids.shape[1]]
        for block in t["h"]:
            x = block(x)
        return t["ln_f"](x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., n_embd) -> (..., vocab_size), in f32."""
        return functional.linear(hidden, self.transformer["wte"].weight).float()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy of rows (batch, tokens + 1), in nats a token."""
        logits = self.logits(self(rows[:, :-1]))
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
