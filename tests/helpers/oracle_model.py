"""A model of two layers whose matrices are of any one type, from fixed random bytes.

The bytes are those that any file could hold: no encoder of ours made them. `RandomState` gives the
same numbers under every numpy, and all else is exact, so no model is stored. The logits that
transformers computes for each are, in `data/oracle.npz`: see `writers/oracle.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from starcoder.core.tensor import Tensor, TensorType
from tests.helpers.gguf import GGUFTensor, write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

__all__ = ["DIM", "IDS", "N_CTX", "N_ROWS", "N_VOCAB", "OracleModel"]

N_CTX, DIM, N_VOCAB = 64, 256, 320  # 256: the block of the K types
IDS = [int(i) for i in np.random.RandomState(5).randint(0, N_VOCAB, 48)]
N_ROWS = 12  # the last ones, whose logits are kept

# Of each block: where f16 numbers stand, and the largest of each in units of 2^-20. The second is
# that of what is subtracted, so that weights are about as often below zero as above.
SCALES = {
    "Q4_0": {0: 14000},
    "Q4_1": {0: 14000, 2: -105000},
    "Q5_0": {0: 7000},
    "Q5_1": {0: 7000, 2: -108000},
    "Q8_0": {0: 900},
    "IQ4_NL": {0: 900},
    "Q2_K": {80: 5000, 82: 7000},
    "Q3_K": {108: 1500},
    "Q4_K": {0: 360, 2: 2700},
    "Q5_K": {0: 180, 2: 2800},
    "Q6_K": {208: 64},
}


class OracleModel:
    """The model with matrices of one type."""

    def __init__(self, kind: TensorType) -> None:
        self.kind = kind
        self._random = np.random.RandomState(kind.value + 1)
        matrices = {"token_embd.weight": (N_VOCAB, DIM)}
        self.vectors = {"position_embd.weight": self._floats(0, 700, N_CTX, DIM)}
        for i in range(2):
            name = f"blk.{i}"
            for norm in ("attn_norm", "ffn_norm"):
                self._norm(f"{name}.{norm}")
            for part, n_rows in (
                ("attn_qkv", DIM + 2 * DIM // 4),
                ("attn_output", DIM),
                ("ffn_up", DIM),
                ("ffn_down", DIM),
            ):
                matrices[f"{name}.{part}.weight"] = (n_rows, DIM)
                self.vectors[f"{name}.{part}.bias"] = self._floats(0, 700, n_rows)
        self._norm("output_norm")
        self.matrices = {name: self._matrix(*shape) for name, shape in matrices.items()}

    def digest(self) -> str:
        """A fingerprint of all weights."""
        found = hashlib.sha256()
        for vector in self.vectors.values():
            found.update(vector.tobytes())
        for matrix in self.matrices.values():
            found.update(matrix.data.tobytes())
        return found.hexdigest()

    def shape(self) -> TinyModel:
        """The settings and the vocabulary, without matrices."""
        model = replace(make_tiny(), weights=dict(self.vectors), n_ctx=N_CTX)
        return replace(model, dim=DIM, hidden_dim=DIM)

    def write(self, path: Path) -> Path:
        """The model as a GGUF file."""
        tensors = [GGUFTensor(n, a.shape, 0, a.tobytes()) for n, a in self.vectors.items()]
        for name, matrix in self.matrices.items():
            tensors.append(GGUFTensor(name, matrix.shape, self.kind.value, matrix.data.tobytes()))
        return write_gguf(path, self.shape(), tensors=tensors)

    def _norm(self, name: str) -> None:
        self.vectors[f"{name}.weight"] = self._floats(4096, 700, DIM)
        self.vectors[f"{name}.bias"] = self._floats(0, 700, DIM)

    def _floats(self, middle: int, spread: int, *shape: int) -> np.ndarray:
        """Numbers around `middle`, in units of 2^-12; exact."""
        whole = self._random.randint(middle - spread, middle + spread + 1, shape)
        return (whole / 4096).astype(np.float32)

    def _matrix(self, n_rows: int, n_cols: int) -> Tensor:
        if self.kind.name in SCALES:
            return self._blocks(n_rows, n_cols)
        whole = self._random.randint(-2000000, 2000001, (n_rows, n_cols))
        floats = (whole / (1 << 24)).astype("<f4")
        if self.kind is TensorType.F16:
            data = floats.astype("<f2").view(np.uint8)
        elif self.kind is TensorType.BF16:
            data = (floats.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        else:
            data = floats.view(np.uint8)
        return Tensor(self.kind, (n_rows, n_cols), data.reshape(-1))

    def _blocks(self, n_rows: int, n_cols: int) -> Tensor:
        """Blocks of any bytes, but for the f16 numbers in them: half to all of the largest."""
        n_bytes = self.kind.nbytes((n_rows, n_cols))
        data = np.frombuffer(self._random.bytes(n_bytes), np.uint8).copy()
        blocks = data.reshape(-1, self.kind.block_bytes)
        shares = self._random.randint(512, 1025, (len(blocks), 1)) / 1024
        for at, largest in SCALES[self.kind.name].items():
            scales = (shares * largest / (1 << 20)).astype("<f2")
            blocks[:, at : at + 2] = scales.view(np.uint8)
        return Tensor(self.kind, (n_rows, n_cols), data)
