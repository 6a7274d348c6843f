"""Damage for `mutants`: wrong bytes, wrong JSON values, and where a format keeps its numbers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

EDGES = [0, 1, 2, 3, 7, 31, 33, 127, 128, 255, 256, 4096, 4097, 65535, 65536, 1 << 20]
EDGES += [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 61, 1 << 62, 1 << 63, (1 << 64) - 1]
EDGES += [0x7FC00000, 0x7F800000, 0xFF800000, 0xBF800000, 0x7FF8 << 48, 0xFFF0 << 48]  # NaN, inf
WORDS: list[Any] = [None, True, False, "", "x", -1, 0, 1, 3, 0.5, -1.5, 1e308, [], {}, [[]]]
WORDS += [2**31, 2**63, 2**64, 10**40, "a" * 5000, "\ud800", "\0", [0] * 1000, {"a": {"a": {}}}]
WORDS += ["../x", "gelu", "gelu_new", "F16", "BF16", "F32", "I64", "BPE", "ByteLevel", 49152, 320]


def damage_bytes(raw: bytes, fields: list[tuple[int, int]], rng: random.Random) -> bytes:
    """One to three wrongs: a boundary value in a field, a cut, flips, a block moved or lost."""
    out = bytearray(raw)
    end = max((place for place, _ in fields), default=len(raw)) + 8
    end = len(raw) if rng.random() < 0.2 else end  # weights too
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(min(len(out), end) or 1)
        n = min(rng.choice((1, 2, 4, 8, 32, 500)), len(out) - at)
        match rng.choice(
            ("field",) * 8 + ("flip",) * 5 + ("cut", "drop", "double", "move", "fill")
        ):
            case "field" if fields:
                place, size = rng.choice(fields)
                value = rng.choice(EDGES)
                if rng.random() < 0.3:
                    value = int.from_bytes(out[place : place + size], "little") + rng.choice(
                        (-1, 1)
                    )
                out[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            case "flip" | "field":
                for _ in range(rng.randint(1, 8)):
                    out[rng.randrange(min(len(out), end))] ^= 1 << rng.randrange(8)
            case "cut":
                del out[rng.choice((at, rng.randrange(len(out)))) :]
            case "drop":
                del out[at : at + n]
            case "double":
                out[at:at] = out[at : at + n]
            case "move":
                block = out[at : at + n]
                del out[at : at + n]
                to = rng.randrange(min(len(out), end) or 1)
                out[to:to] = block
            case _:
                out[at : at + n] = bytes([rng.choice((0, 255, 34))]) * n
        if not out:
            break
    return bytes(out)


def damage_json(value: Any, rng: random.Random) -> Any:
    """The same value with something else at one place in it."""
    places = list(_places(value))
    holder, key = rng.choice(places)
    match rng.choice(("word", "word", "near", "drop", "swap", "double", "deep")):
        case "near" if type(holder[key]) is int:
            holder[key] += rng.choice((-1, 1, 1000, -(1 << 40)))
        case "drop":
            del holder[key]
        case "swap" | "double":
            other, there = rng.choice(places)
            holder[key] = json.loads(json.dumps(other.get(there) if type(other) is dict else there))
        case "deep":
            holder[key] = json.loads("[" * 900 + "]" * 900)
        case _:
            holder[key] = rng.choice(WORDS)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if type(value) is dict else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)) and value[key]:
            yield from _places(value[key])


# ------------------------------------------------------------------------------------------------
# Where the numbers stand: (offset, bytes)


_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 8: 8, 10: 8, 11: 8, 12: 8}


def gguf_fields(raw: bytes) -> list[tuple[int, int]]:
    """Where each number of a GGUF header stands, and its size; a list is one field of many."""
    fields, place = [(4, 4), (8, 8), (16, 8)], 24
    n_tensors, n_keys = struct.unpack_from("<2Q", raw, 8)

    def number(size: int) -> int:
        nonlocal place
        fields.append((place, size))
        place += size
        return int.from_bytes(raw[place - size : place], "little")

    def text() -> None:
        nonlocal place
        length = number(8)  # which moves the place
        place += length

    for _ in range(n_keys):
        text()
        kind, count = number(4), 1
        if kind == 9:
            kind, count = number(4), number(8)
        for i in range(count):
            text() if kind == 8 else number(_GGUF_SIZES[kind])
            if i % 40:
                fields.pop()
    for _ in range(n_tensors):
        text()
        for size in (*[8] * number(4), 4, 8):
            number(size)
    return fields


def legacy_fields(raw: bytes) -> list[tuple[int, int]]:
    (n,) = struct.unpack_from("<i", raw, 28)
    fields, place = [(4 * i, 4) for i in range(8)], 32
    for i in range(n):
        fields += [(place, 4)] if i % 40 == 0 else []
        place += 4 + struct.unpack_from("<i", raw, place)[0]
    while place < len(raw):
        n_dims, name_len, _ = struct.unpack_from("<3i", raw, place)
        fields += [(place + 4 * i, 4) for i in range(3 + n_dims)]
        shape = struct.unpack_from(f"<{n_dims}i", raw, place + 12)
        place += 12 + 4 * n_dims + name_len + 4 * int(np.prod(shape))
    return fields


def header_fields(raw: bytes) -> list[tuple[int, int]]:
    """Numbers of a safetensors header's length, or of the headers and the end of a ZIP file."""
    if raw[:2] != b"PK":
        return [(0, 8), (1, 2), (8, 4), (40, 4), (min(len(raw), 3000) - 8, 8)]
    fields = [(len(raw) - 22 + at, size) for at, size in ((8, 2), (10, 2), (12, 4), (16, 4))]
    for magic, numbers in ((b"PK\1\2", (8, 10, 20, 24, 28, 30, 32, 42)), (b"PK\3\4", (26, 28))):
        places = [i for i in range(len(raw)) if raw.startswith(magic, i)]
        fields += [
            (place + at, 4 if at in (20, 24, 42) else 2) for place in places for at in numbers
        ]
    return fields
