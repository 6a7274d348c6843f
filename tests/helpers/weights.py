"""Random weights of every type, for tests: bytes that any file could hold."""

from __future__ import annotations

import numpy as np

from starcoder.core.tensor import Tensor, TensorType

# Where the f16 scales of a block stand; every other byte may be anything.
SCALES = {
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.IQ4_NL: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
}


def random_tensor(kind: TensorType, n_rows: int, n_cols: int, seed: int = 0) -> Tensor:
    """A tensor whose scales are ordinary f16 numbers, of both signs, and whose codes are any."""
    rng = np.random.default_rng(seed)
    if kind not in SCALES:
        floats = rng.standard_normal(n_rows * n_cols).astype(np.float32)
        if kind is TensorType.F16:
            return Tensor(kind, (n_rows, n_cols), floats.astype(np.float16).view(np.uint8))
        if kind is TensorType.BF16:
            halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
            return Tensor(kind, (n_rows, n_cols), halves.view(np.uint8))
        return Tensor(kind, (n_rows, n_cols), floats.view(np.uint8))
    data = rng.integers(0, 256, kind.nbytes((n_rows, n_cols)), dtype=np.uint8)
    blocks = data.reshape(-1, kind.block_bytes)
    for at in SCALES[kind]:
        scales = rng.uniform(-0.05, 0.05, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Tensor(kind, (n_rows, n_cols), data)
