"""GPTBigCode in PyTorch: multi-query attention, learned positions, tanh GELU, tied output.

The names of the parameters are Hugging Face's, so that exporting is saving. Training alone uses
this module; what runs the model afterwards is starcoder itself.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from training.shape import Shape


class Attention(nn.Module):
    """All query heads against one key/value head: (batch, tokens, n_embd) -> the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.head_dim = shape.n_embd // shape.n_head
        self.c_attn = nn.Linear(shape.n_embd, shape.n_embd + 2 * self.head_dim)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, n_embd) -> the same."""
        batch, tokens, width = x.shape
        q, k, v = self.c_attn(x).split((width, self.head_dim, self.head_dim), dim=-1)
        q = q.view(batch, tokens, self.n_head, self.head_dim).transpose(1, 2)
        k, v = (part.unsqueeze(1).expand(-1, self.n_head, -1, -1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Up, tanh GELU, down."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, shape.n_inner)
        self.c_proj = nn.Linear(shape.n_inner, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, n_embd) -> the same."""
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, n_embd) -> the same."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


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

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (batch, tokens, n_embd) after the last norm.

        Ids and positions are (batch, tokens).
        """
        t = self.transformer
        x = t["wte"](ids) + t["wpe"](positions)
        for block in t["h"]:
            x = block(x)
        return t["ln_f"](x)

    def loss(self, ids: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a token; all three are (batch, tokens)."""
        logits = functional.linear(self(ids, positions), self.transformer["wte"].weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
