"""Makes `tests/data/oracle.npz`: what other programs make of weights of every type.

    PYTHON -m tests.writers.oracle --quantized FOLDER

PYTHON has this package, torch, transformers and gguf. FOLDER has one model with 256 columns as
llama.cpp quantizes it (f32.gguf, q4_0.gguf, q4_k_m.gguf ...) and as ggml's example did
(legacy-q4_0.bin ...). In the file:

    TYPE.digest     a fingerprint of the model of `helpers/oracle_model.py` with that type
    TYPE.logits     transformers', in float32, of the last rows; gguf says what the blocks stand for
    greedy          the ids that transformers goes on with, on F32
    floats          some rows of FOLDER's model
    TYPE.bytes      llama.cpp's for these rows
    TYPE.legacy     ggml's example's
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from starcoder import formats
from starcoder.core.tensor import Tensor, TensorType
from tests.helpers.hf import hf_config, hf_name
from tests.helpers.oracle_model import DIM, IDS, N_ROWS, OracleModel

FILE = Path(__file__).parent.parent / "data" / "oracle.npz"
N_GREEDY, N_QUANTIZED, QUANTIZED = 12, 8, "blk.0.ffn_up.weight"
MIXES = {"Q2_K": "q2_k", "Q3_K": "q3_k_m", "Q4_K": "q4_k_m", "Q5_K": "q5_k_m"}


def floats_of(matrix: Tensor) -> np.ndarray:
    """What gguf says the blocks stand for."""
    blocks = matrix.data.reshape(matrix.shape[0], -1)
    kind = gguf.GGMLQuantizationType(matrix.type.value)
    return gguf.quants.dequantize(blocks, kind).reshape(matrix.shape).astype(np.float32)


def transformers_model(model: OracleModel) -> Any:
    """The model as transformers runs it, in float32."""
    settings = hf_config(model.shape()) | {"n_inner": DIM, "attn_pdrop": 0.0}
    net = GPTBigCodeForCausalLM(GPTBigCodeConfig(**settings)).float().eval()
    weights = model.vectors | {name: floats_of(m) for name, m in model.matrices.items()}
    state = {hf_name(model.shape(), name): torch.tensor(array) for name, array in weights.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all("bias" in name or "mask" in name for name in missing), missing
    return net


def greedy(net: Any) -> list[int]:
    ids = list(IDS)
    for _ in range(N_GREEDY):
        ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(IDS) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantized", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args().quantized
    torch.set_grad_enabled(False)
    found: dict[str, Any] = {}
    for kind in TensorType:
        model = OracleModel(kind)
        net = transformers_model(model)
        found[f"{kind.name}.digest"] = model.digest()
        found[f"{kind.name}.logits"] = net(torch.tensor([IDS])).logits[0, -N_ROWS:].numpy()
        if kind is TensorType.F32:
            found["greedy"] = greedy(net)
        name = MIXES.get(kind.name, kind.name.lower())
        found[f"{kind.name}.bytes"] = rows_of(folder / f"{name}.gguf", kind)
        if (folder / f"legacy-{name}.bin").exists():
            found[f"{kind.name}.legacy"] = rows_of(folder / f"legacy-{name}.bin", kind)
    found["floats"] = found.pop("F32.bytes").view(np.float32).reshape(N_QUANTIZED, -1)
    np.testing.assert_array_equal(found.pop("F32.legacy").view(np.float32), found["floats"].flat)
    np.savez_compressed(FILE, **found)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


def rows_of(path: Path, kind: TensorType) -> np.ndarray:
    """The bytes of some rows in a file."""
    tensor = formats.read(path).tensors[QUANTIZED]
    assert tensor.type is kind, (path, tensor.type)
    return tensor.data.reshape(tensor.shape[0], -1)[:N_QUANTIZED].reshape(-1).copy()


if __name__ == "__main__":
    main()
