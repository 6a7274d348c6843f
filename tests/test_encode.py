"""The quantizers: ggml's bytes where ggml's bytes are promised, and less error than llama.cpp's
where they are not; the same bytes on any machine and any number of threads.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from starcoder import _core, formats
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from tests import reference
from tests.helpers.guarded import guarded
from tests.helpers.weights import random_tensor

TYPES = list(TensorType)
FLOATS = [TensorType.F32, TensorType.F16, TensorType.BF16]
PLAIN = [TensorType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
SEARCHED = [TensorType[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")]
ISAS = ops.available_isas()
pytestmark = pytest.mark.usefixtures("core_restored")


def normal(*shape: int, seed: int = 0, scale: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def odd_blocks() -> np.ndarray:
    """Rows of 256: constants, zeros of both signs, ties, one large weight, every magnitude."""
    rng = np.random.default_rng(5)
    rows = [np.zeros(256), np.full(256, -0.0), np.full(256, 0.25), np.full(256, -0.25)]
    rows += [rng.choice([-0.0, 0.0], 256), rng.choice([-1.5, 1.5], 256)]
    rows += [rng.integers(-8, 9, 256) / 8, rng.integers(-16, 17, 256) / 2]
    rows += [np.abs(rng.standard_normal(256)), -np.abs(rng.standard_normal(256))]
    rows += [np.where(np.arange(256) % 37, 1e-3, 1.0), np.where(np.arange(256) % 41, 1e-9, -3.0)]
    rows += [rng.standard_normal(256) * 10.0**e for e in range(-9, 5)]
    rows += [np.eye(1, 256, 255)[0], np.linspace(-1, 1, 256), np.linspace(0, 1, 256)]
    return np.array(rows, np.float32)


def error(x: np.ndarray, tensor: Tensor) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((ops.dequantize(tensor).astype(np.float64) - x) ** 2)))


def name_of(kind: TensorType) -> str:
    return kind.name


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", PLAIN, ids=name_of)
def test_plain_types_are_ggmls_bytes(kind: TensorType, isa: str) -> None:
    ops.use_isa(isa)
    for x in (normal(300, 256), normal(64, 96, scale=3.0), odd_blocks()):
        found = ops.quantize(x, kind)
        assert found == reference.quantize(x, kind)
        theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(int(kind))).reshape(len(x), -1)
        # Which zero a block of zeros has is ggml's choice; the gguf package does otherwise.
        same = (found.data.reshape(theirs.shape) == theirs).all(axis=1)
        assert (same | ~x.any(axis=1)).all()


@np.errstate(invalid="ignore")  # numpy on ARM warns of signaling not-a-numbers
@pytest.mark.parametrize("isa", ISAS)
def test_floats_are_rounded_to_nearest_even_and_nan_stays_nan(isa: str) -> None:
    ops.use_isa(isa)
    bits = np.random.default_rng(1).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits[:8] = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0x7F7FFFFF, 0x33000001]
    every_half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = every_half.view(np.uint32) + np.uint32(0x1000)  # halfway between two halves
    for x in (bits.view(np.float32), every_half, ties.view(np.float32), every_half[:17]):
        for kind in FLOATS:
            found, slow = ops.quantize(x[None], kind), reference.quantize(x[None], kind)
            same = np.isnan(ops.dequantize(slow)) & np.isnan(ops.dequantize(found))
            same |= ops.dequantize(slow) == ops.dequantize(found)
            assert same.all(), kind


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16", "bf16"])
def test_every_plain_tensor_of_llama_cpps_file_is_made_again(oracle: Path, name: str) -> None:
    floats = formats.read(oracle / "f32.gguf").tensors
    kind, n_checked = TensorType[name.upper()], 0
    for key, tensor in formats.read(oracle / f"{name}.gguf").tensors.items():
        if tensor.type is kind:
            assert ops.requantize(floats[key], kind) == tensor, key
            n_checked += 1
    assert n_checked >= 8


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16"])
def test_every_plain_tensor_of_ggmls_legacy_file_is_made_again(oracle: Path, name: str) -> None:
    floats = formats.read(oracle / "legacy-f32.bin").tensors
    kind, n_checked = TensorType[name.upper()], 0
    for key, tensor in formats.read(oracle / f"legacy-{name}.bin").tensors.items():
        if tensor.type is kind:
            assert ops.requantize(floats[key], kind, fused=True) == tensor, key
            n_checked += 1
    assert n_checked == 9


@pytest.mark.parametrize("isa", ISAS)
def test_fused_codes_differ_where_only_the_rounding_of_a_product_decides(isa: str) -> None:
    ops.use_isa(isa)
    top, x = np.float32(0.20582587), normal(8, 32, scale=0.02)
    inverse = np.float32(1) / (top / np.float32(-16))
    edges = ((np.arange(1, 32) - 16.5) / inverse).astype(np.float32)  # where one code ends
    weights = (edges.view(np.int32)[:, None] + np.arange(-20, 20, dtype=np.int32)).view(np.float32)
    plain_sums = weights * inverse + np.float32(16.5)
    fused_sums = (weights.astype(np.float64) * inverse + 16.5).astype(np.float32)
    telling = weights[plain_sums.astype(np.int32) != fused_sums.astype(np.int32)]
    x[0, 0], x[0, 1:3] = top, telling[:2]
    plain, fused = ops.quantize(x, TensorType.Q5_0), ops.quantize(x, TensorType.Q5_0, fused=True)
    assert plain != fused
    for kind in PLAIN:
        for value in (False, True):
            found = ops.quantize(x, kind, fused=value)
            assert found == reference.quantize(x, kind, fused=value)


# ---- error ---------------------------------------------------------------------------------------

MIXES = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "q4_0"]


@pytest.mark.parametrize("mix", MIXES)
def test_no_searched_tensor_is_further_from_the_weights_than_llama_cpps(
    oracle: Path, mix: str
) -> None:
    floats = formats.read(oracle / "f32.gguf").tensors
    n_checked = 0
    for key, theirs in formats.read(oracle / f"{mix}.gguf").tensors.items():
        if theirs.type in SEARCHED:
            x = ops.dequantize(floats[key])
            assert error(x, ops.quantize(x, theirs.type)) <= error(x, theirs), key
            n_checked += 1
    assert n_checked


# Root mean squared errors of normal weights, in units of their deviation: a little above what the
# search reaches.
LIMITS = {"Q2_K": 0.267, "Q3_K": 0.146, "Q4_K": 0.0712}
LIMITS |= {"Q5_K": 0.0351, "Q6_K": 0.0172, "IQ4_NL": 0.0749}


@pytest.mark.parametrize("kind", SEARCHED, ids=name_of)
def test_the_search_reaches_its_error(kind: TensorType) -> None:
    x = normal(200, 1024, scale=1.0)
    assert error(x, ops.quantize(x, kind)) <= LIMITS[kind.name]


def plainly_rounded(x: np.ndarray, kind: TensorType) -> np.ndarray:
    """What a look at each group's extremes gives, with scales that cost nothing."""
    groups = x.astype(np.float64).reshape(-1, 16 if kind.name in ("Q2_K", "Q3_K", "Q6_K") else 32)
    if kind.name in ("Q2_K", "Q4_K", "Q5_K"):
        top = {"Q2_K": 3, "Q4_K": 15, "Q5_K": 31}[kind.name]
        low = np.minimum(groups.min(axis=1, keepdims=True), 0)
        step = np.maximum(groups.max(axis=1, keepdims=True) - low, 1e-30) / top
        return (np.rint((groups - low) / step) * step + low).reshape(x.shape)
    values = reference.CODEBOOK.astype(np.float64)
    if kind.name != "IQ4_NL":
        half = {"Q3_K": 4, "Q6_K": 32}[kind.name]
        values = np.arange(-half, half, dtype=np.float64)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    step = np.where(largest == 0, 1, largest) / values[0]
    nearest = np.abs(groups[:, :, None] / step[:, :, None] - values).argmin(axis=2)
    return (values[nearest] * step).reshape(x.shape)


@pytest.mark.parametrize("kind", SEARCHED, ids=name_of)
def test_the_search_beats_plain_rounding(kind: TensorType) -> None:
    outliers = normal(40, 512)
    outliers[:, ::97] *= 10
    for x in (
        normal(40, 512),
        np.abs(normal(40, 512)),
        normal(40, 512) + np.float32(0.1),
        outliers,
    ):
        found, plain = ops.dequantize(ops.quantize(x, kind)), plainly_rounded(x, kind)
        mine = ((found - x) ** 2).reshape(-1, kind.block_len).sum(axis=1)
        theirs = ((plain - x) ** 2).reshape(-1, kind.block_len).sum(axis=1)
        assert mine.sum() < theirs.sum()
        assert (mine <= theirs).mean() > 0.7


@pytest.mark.parametrize("kind", SEARCHED, ids=name_of)
def test_what_blocks_can_say_exactly_is_kept(kind: TensorType) -> None:
    """Weights that came out of blocks go into blocks again with next to no loss."""
    x = normal(30, 512)
    first = ops.quantize(x, kind)
    again = ops.quantize(ops.dequantize(first), kind)
    assert error(ops.dequantize(first), again) <= 0.25 * error(x, first)
    assert not ops.dequantize(ops.quantize(np.zeros((3, 512), np.float32), kind)).any()


@pytest.mark.parametrize("kind", SEARCHED, ids=name_of)
def test_weights_of_any_size_are_quantized_alike(kind: TensorType) -> None:
    x = normal(20, 256, scale=1.0)
    one = error(x, ops.quantize(x, kind))
    for power in (-6, -3, 3, 8, 12):
        scaled = x * np.float32(2.0**power)
        assert error(scaled, ops.quantize(scaled, kind)) <= 1.02 * one * 2.0**power, power
    for row in odd_blocks():
        tensor = ops.quantize(row[None], kind)
        assert np.isfinite(ops.dequantize(tensor)).all()
        assert error(row[None], tensor) <= 0.3 * np.abs(row).max() + 1e-6


# ---- weights that are not finite, or nearly ------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("kind", TYPES, ids=name_of)
def test_weights_that_are_not_finite_stay_visible_in_their_block(
    kind: TensorType, bad: float
) -> None:
    x = normal(5, 512)
    x[3, 300] = bad
    for isa in ISAS:
        ops.use_isa(isa)
        found = ops.dequantize(ops.quantize(x, kind)).reshape(-1, kind.block_len)
        block = (3 * 512 + 300) // kind.block_len
        expected = np.isinf(bad) if kind in FLOATS else False
        assert (np.isinf(found[block]) if expected else np.isnan(found[block])).all()
        assert np.isfinite(np.delete(found, block, axis=0)).all()


@pytest.mark.parametrize("kind", TYPES, ids=name_of)
def test_the_largest_and_smallest_floats_have_one_answer_too(kind: TensorType) -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, (40, 512), dtype=np.uint32)
    finite = np.where(bits & 0x7F800000 == 0x7F800000, bits & 0x007FFFFF, bits)
    x = finite.astype(np.uint32).view(np.float32)
    x = np.concatenate([x, np.full((1, 512), 3.4e38, np.float32)])
    x = np.concatenate([x, x * np.float32(1e-38), np.full((1, 512), 1e-45, np.float32)])
    answers = []
    for isa in ISAS:
        ops.use_isa(isa)
        answers.append(ops.quantize(x, kind))
    assert all(answer == answers[0] for answer in answers)
    if kind not in FLOATS:
        assert not np.nan_to_num(ops.dequantize(answers[0])[-1]).any()
    if kind in SEARCHED:
        assert np.isfinite(ops.dequantize(answers[0])).all()


def test_the_first_weight_that_is_not_finite_is_found() -> None:
    x = normal(200, 1000)
    assert ops.first_non_finite(x) is None
    for places in ([0], [199_999], [123_456, 150_000, 199_999], [4095, 4096], [70_000, 4097]):
        for bad in (np.nan, np.inf, -np.inf):
            y = x.copy()
            y.reshape(-1)[places] = bad
            for n_threads in (1, 2):
                ops.set_n_threads(n_threads)
                assert ops.first_non_finite(y) == min(places)
            half = ops.quantize(y, TensorType.F16)
            assert ops.first_non_finite(half) == min(places)
    assert ops.first_non_finite(np.full((1, 1), 3.4e38, np.float32)) is None
    block = ops.quantize(np.where(np.arange(512) == 300, np.nan, x[:1, :512]), TensorType.Q6_K)
    assert ops.first_non_finite(block) == 256


# ---- one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES, ids=name_of)
def test_the_bytes_depend_on_nothing_but_the_weights(kind: TensorType) -> None:
    x = np.concatenate([normal(333, 512), np.tile(odd_blocks(), (1, 2))])
    for fused in (False, True):
        ops.set_n_threads(1)
        expected = ops.quantize(x, kind, fused=fused)
        for n_threads in (2, 3):
            ops.set_n_threads(n_threads)
            assert ops.quantize(x, kind, fused=fused) == expected, n_threads
        for isa in ISAS:
            ops.use_isa(isa)
            assert ops.quantize(x, kind, fused=fused) == expected, isa
        row_bytes = len(expected.data) // len(x)
        for i in (0, 7, 332, 340):  # a row alone has the bytes that it has among others
            alone = ops.quantize(x[i : i + 1], kind, fused=fused).data
            assert np.array_equal(alone, expected.data[i * row_bytes : (i + 1) * row_bytes])


@pytest.mark.parametrize("source", TYPES, ids=name_of)
@pytest.mark.parametrize("kind", TYPES, ids=name_of)
def test_from_any_type_to_any_type(source: TensorType, kind: TensorType) -> None:
    tensor = random_tensor(source, 19, 512)
    expected = ops.quantize(ops.dequantize(tensor), kind)
    assert ops.requantize(tensor, kind) == expected
    shifted = np.empty(tensor.nbytes + 1, np.uint8)[1:]  # in a file, at any byte
    shifted[:] = tensor.data
    assert ops.requantize(Tensor(source, tensor.shape, shifted), kind) == expected


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("kind", TYPES, ids=name_of)
def test_no_quantizer_touches_memory_beyond_its_arrays(kind: TensorType, after: bool) -> None:
    shapes = [(1, 256), (3, 512), (17, 256)]
    shapes += [(1, 1), (3, 7), (5, 33), (1, 4097)] if kind in FLOATS else []
    shapes += [(1, 32), (3, 96), (129, 32)] if kind.block_len == 32 else []
    for shape in shapes:
        x = guarded(normal(*shape), after=after)
        out = guarded(np.zeros(kind.nbytes(shape), np.uint8), after=after)
        for isa in ISAS:
            ops.use_isa(isa)
            _core.quantize(int(kind), x, False, out)
            assert np.array_equal(out, ops.quantize(normal(*shape), kind).data)
            back = guarded(np.zeros(x.nbytes, np.uint8), after=after)
            _core.requantize(int(kind), out, *shape, 0, False, back)
            assert _core.first_non_finite(int(kind), out) == -1


def test_blocks_can_be_written_into_a_larger_buffer() -> None:
    x, kind = normal(4, 256), TensorType.Q4_K
    buffer = np.full(3 + 4 * 144 + 5, 7, np.uint8)
    ops.requantize(ops.quantize(x, TensorType.F32), kind, buffer[3:-5])
    assert np.array_equal(buffer[3:-5], ops.quantize(x, kind).data)
    assert (buffer[:3] == 7).all()
    assert (buffer[-5:] == 7).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole blocks of 32"):
        ops.quantize(normal(2, 48), TensorType.Q4_0)
    with pytest.raises(ValueError, match="as many bytes"):
        _core.quantize(2, normal(2, 64), False, np.zeros(71, np.uint8))
    with pytest.raises(ValueError, match="unknown tensor type"):
        _core.quantize(9, normal(2, 64), False, np.zeros(72, np.uint8))
    with pytest.raises(ValueError, match="even address"):
        _core.quantize(1, normal(1, 8), False, np.zeros(17, np.uint8)[1:])
    with pytest.raises(ValueError, match="as many bytes"):
        _core.first_non_finite(2, np.zeros(17, np.uint8))
