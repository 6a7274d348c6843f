"""ModelConfig: the numbers that shape a model, the same whichever file they came from.

Readers in `formats` fill it, models are built from it. It knows neither files nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starcoder.errors import FormatError

__all__ = ["ACTIVATIONS", "ACTIVATION_NAMES", "ModelConfig"]

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "silu")
ACTIVATION_NAMES = {  # how files spell them: the words of Hugging Face's config.json
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

# Far above every model of the family (StarCoder: 40 layers, dim 6144, 48 heads, 49152 tokens),
# and low enough that no product of two of them leaves 64 bits.
_LIMITS = {
    "n_ctx": 1 << 24,
    "n_vocab": 1 << 24,
    "dim": 1 << 20,
    "hidden_dim": 1 << 22,
    "n_layers": 1 << 10,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
}

_MIN_EPS = 1e-37  # less is not a normal number of 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The hyper-parameters of one model; checked when it is made.

    Raises:
        FormatError: a number outside its bounds, or numbers that contradict each other.
    """

    architecture: str  # "gpt_bigcode"
    n_ctx: int  # positions the model was trained with: the longest context
    n_vocab: int  # rows of the embedding, padding included
    dim: int  # width of the residual stream ("n_embd")
    hidden_dim: int  # width inside the feed-forward part ("n_inner"), mostly 4 * dim
    n_layers: int
    n_heads: int
    n_kv_heads: int  # 1: multi-query attention
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"  # one of ACTIVATIONS
    name: str = field(default="", compare=False)  # what the file calls the model
    source: str = field(default="", compare=False)  # the file, for messages

    def __post_init__(self) -> None:
        for key, limit in _LIMITS.items():
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= limit:
                raise self._error(key, repr(value), f"a whole number from 1 to {limit}")
        if self.dim % self.n_heads:
            raise self._error("n_heads", str(self.n_heads), f"a divisor of dim = {self.dim}")
        if self.n_heads % self.n_kv_heads:
            found, expected = str(self.n_kv_heads), f"a divisor of n_heads = {self.n_heads}"
            raise self._error("n_kv_heads", found, expected)
        if not _MIN_EPS <= self.norm_eps < 1:  # nor is a NaN
            expected = f"a number from {_MIN_EPS} to 1"
            raise self._error("norm_eps", repr(self.norm_eps), expected)
        if self.activation not in ACTIVATIONS:
            raise self._error("activation", repr(self.activation), " or ".join(ACTIVATIONS))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.n_kv_heads * self.head_dim

    @property
    def qkv_dim(self) -> int:
        """Width of the queries, keys and values of all heads."""
        return self.dim + 2 * self.kv_dim

    def _error(self, key: str, found: str, expected: str) -> FormatError:
        where = f"{self.source or 'model configuration'}: {key}"
        return FormatError(where, found, expected, "the file is damaged or of an unknown kind")
