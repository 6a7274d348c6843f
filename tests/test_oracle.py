"""What other programs compute from weights of every type: logits, bytes and greedy tokens.

All of it is in `data/oracle.npz`, which `writers/oracle.py` made with transformers, llama.cpp and
ggml's example. Tests of `oracle`, where that is at hand, say the same of a larger model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM, formats
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.model import models
from tests.helpers.oracle_model import IDS, N_ROWS, OracleModel
from tests.helpers.run_model import divergence, limit, logits

SEARCHED = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
PLAIN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"]
every_type = pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def found(data: Path) -> Mapping[str, np.ndarray]:
    with np.load(data / "oracle.npz") as file:
        return dict(file)


@every_type
def test_the_model_is_the_one_that_others_ran(
    kind: TensorType, found: Mapping[str, np.ndarray]
) -> None:
    assert OracleModel(kind).digest() == found[f"{kind.name}.digest"]


@every_type
def test_logits_of_every_type_are_those_of_transformers(
    kind: TensorType, found: Mapping[str, np.ndarray], tmp_path: Path
) -> None:
    path = OracleModel(kind).write(tmp_path / "m.gguf")
    ours = logits(models.build(formats.read(path)), IDS)[-N_ROWS:]
    assert divergence(found[f"{kind.name}.logits"], ours) <= limit(kind.name.lower())


def test_greedy_tokens_are_those_of_transformers(
    found: Mapping[str, np.ndarray], tmp_path: Path
) -> None:
    llm = LLM(OracleModel(TensorType.F32).write(tmp_path / "m.gguf"))
    expected = found["greedy"].tolist()
    ours = llm.generate(IDS, max_tokens=len(expected), temperature=0, ignore_eos=True)
    assert list(ours.tokens) == expected


@pytest.mark.parametrize("name", PLAIN)
def test_plain_types_have_llama_cpps_bytes(name: str, found: Mapping[str, np.ndarray]) -> None:
    ours = ops.quantize(found["floats"], TensorType[name])
    assert np.array_equal(ours.data, found[f"{name}.bytes"])


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "BF16"])
def test_plain_types_have_the_bytes_of_ggmls_example(
    name: str, found: Mapping[str, np.ndarray]
) -> None:
    ours = ops.quantize(found["floats"], TensorType[name], fused=True)
    assert np.array_equal(ours.data, found[f"{name}.legacy"])


@pytest.mark.parametrize("name", SEARCHED)
def test_searched_types_are_no_further_from_the_weights_than_llama_cpps(
    name: str, found: Mapping[str, np.ndarray]
) -> None:
    kind, floats = TensorType[name], found["floats"]
    theirs = Tensor(kind, floats.shape, found[f"{name}.bytes"])
    errors = [
        float(np.square(ops.dequantize(tensor) - floats).sum(dtype=np.float64))
        for tensor in (ops.quantize(floats, kind), theirs)
    ]
    assert 0 < errors[0] <= errors[1]
