"""Looking for weights that are infinite or not numbers, at the speed of reading.

A weight of a quantized type is finite if the half-precision scales of its block are, so only these
are looked at; the kernels find the place when there is one to find.
"""

from __future__ import annotations

from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError

__all__ = ["check_rows"]

_SCALES = {  # bytes of a block at which its f16 scales and minimums begin; see csrc/types/blocks.h
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ4_NL: (0,),
}
_ONES = 0x7C  # an exponent of ones: infinite, or not a number


def check_rows(rows: Tensor, first_row: int, where: str) -> None:
    """Let rows (n, columns) pass, the first of which is number `first_row` of its tensor.

    Raises:
        FormatError: a weight that is not finite; the message has its place.
    """
    if _has_good_scales(rows):
        return
    place = ops.first_non_finite(rows)
    if place is not None:
        row, column = divmod(place, rows.shape[1])
        value = ops.dequantize(rows.rows(row, row + 1))[0, column]
        found = f"{value} in row {first_row + row}, column {column}"
        raise FormatError(where, found, "finite weights", "the weights are damaged at their source")


def _has_good_scales(rows: Tensor) -> bool:
    """Whether the type has scales, and all of them are finite."""
    starts = _SCALES.get(rows.type, ())
    blocks = rows.data.reshape(-1, rows.type.block_bytes)
    highs = (blocks[:, start + 1] for start in starts)  # the bytes with the exponents
    return bool(starts) and not any((high & _ONES == _ONES).any() for high in highs)
