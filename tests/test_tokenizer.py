from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.errors import FormatError, InputError
from starcoder.formats.merges import recover_merges
from starcoder.model.vocab import BYTE_TEXT, Vocab
from starcoder.text.tokenizer import StreamDecoder, Tokenizer
from tests.helpers.tiny import SPECIALS
from tests.helpers.vocabularies import (
    BYTES,
    LIBRARY,
    TRAINED,
    code_like,
    id_pairs,
    make_vocab,
    marked_up,
)


def byte_id(char: str) -> int:
    return len(SPECIALS) + ord(char)


AB = make_vocab([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b" ", b"abc")])
A_B, BC, ABC, SPACE_ABC = range(261, 265)


# ------------------------------------------------------------------------------------------------
# Text to ids


def test_merges_go_by_rank_not_by_length() -> None:
    tokenizer = Tokenizer(AB)
    assert tokenizer.encode("ab") == [A_B]
    assert tokenizer.encode("abc abc") == [ABC, SPACE_ABC]
    assert tokenizer.encode("bcabcc") == [BC, ABC, byte_id("c")]
    bc_first = Tokenizer(make_vocab([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]))
    assert bc_first.encode("abc") == [byte_id("a"), 261]  # a longest match would take all of it


def test_each_digit_is_a_token_of_its_own() -> None:
    tokenizer = Tokenizer(make_vocab([(b"1", b"2"), (b" ", b"1"), (b"3", b"4"), (b"a", b"1")]))
    assert tokenizer.encode(" 12a134") == [byte_id(char) for char in " 12a134"]


def test_numbers_are_words_where_the_vocabulary_says_so() -> None:
    vocab = make_vocab([(b"1", b"2"), (b" ", b"12")])
    together = Tokenizer(replace(vocab, split_digits=False))
    assert together.encode(" 12a12") == [262, byte_id("a"), 261]
    assert Tokenizer(vocab).encode("a12") == [byte_id(char) for char in "a12"]


@settings(max_examples=200)
@given(code_like | marked_up)
def test_ids_equal_those_of_the_library_that_trained_the_vocabulary(text: str) -> None:
    assert TRAINED.encode(text) == LIBRARY.encode(text).ids


def test_special_tokens_are_found_inside_text() -> None:
    tokenizer = Tokenizer(AB)
    assert tokenizer.encode("<fim_prefix>abc<fim_suffix><fim_middle>") == [1, ABC, 3, 2]
    assert tokenizer.encode("ab<fim_prefi>")[0] == A_B
    assert tokenizer.encode("<|endoftext|>") == [0]


def test_text_from_strangers_cannot_smuggle_in_special_tokens() -> None:
    for text in ("<fim_prefix>abc<|endoftext|>", *SPECIALS):
        tokens = Tokenizer(AB).encode(text, special=False)
        assert AB.special_ids.isdisjoint(tokens)
        assert Tokenizer(AB).decode(tokens) == text


def test_the_longest_of_several_special_tokens_wins() -> None:
    tokens = (*BYTES, b"<end", b"<end>", b"<end>", b"", b"\xff<", b"a.c")
    tokenizer = Tokenizer(Vocab(tokens, id_pairs([]), frozenset(range(256, 262)), eos_id=None))
    assert tokenizer.encode("<end><end<") == [257, 256, ord("<")]
    assert tokenizer.encode("abca.c") == [97, 98, 99, 261]


def test_padding_and_repeated_tokens_never_come_out() -> None:
    tokens = (*BYTES, b"ab", b"", b"ab", b"a", b"")
    tokenizer = Tokenizer(Vocab(tokens, id_pairs([(97, 98)]), frozenset(), eos_id=None))
    assert tokenizer.encode("aba") == [256, 97]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([257, 258, 260, 259]) == "aba"


def test_merges_that_make_special_tokens_are_left_out() -> None:
    tokens = (*BYTES, b"ab", b"abc", b"bc")
    merges = id_pairs([(97, 98), (256, 99), (98, 99)])
    tokenizer = Tokenizer(Vocab(tokens, merges, frozenset([256]), eos_id=None))
    assert tokenizer.encode("abc", special=False) == [97, 258]
    assert tokenizer.encode("abc") == [256, 99]


def test_a_character_that_the_vocabulary_cannot_spell_is_named() -> None:
    tokens = (*(byte for byte in BYTES if byte != b"\xf1"), b"<special>")
    tokenizer = Tokenizer(Vocab(tokens, id_pairs([]), frozenset([255]), eos_id=None))
    with pytest.raises(InputError, match=r"U\+50000.*byte 0xF1.*leave it out"):
        tokenizer.encode("fine \U00050000")
    assert tokenizer.decode(tokenizer.encode("🦙<special>")) == "🦙<special>"
    with pytest.raises(InputError, match=r"U\+0061"):
        Tokenizer(Vocab((), id_pairs([]), frozenset(), eos_id=None)).encode("a")


@pytest.mark.parametrize("text", ["a\ud800", "\udcff", "<fim_prefix>\udfff"])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"half of a character.*UTF-8"):
        TRAINED.encode(text)


def test_a_word_of_a_million_letters_is_encoded() -> None:
    word = "".join(random.Random(0).choices("abcdef", k=1 << 20))
    assert TRAINED.decode(TRAINED.encode(word)) == word


# ------------------------------------------------------------------------------------------------
# Ids to text


@settings(max_examples=300)
@given(st.text() | code_like | marked_up, st.booleans())
def test_any_text_comes_back(text: str, special: bool) -> None:
    assert TRAINED.decode(TRAINED.encode(text, special=special)) == text


def test_special_tokens_are_written_out_and_broken_bytes_are_replaced() -> None:
    tokenizer = Tokenizer(AB)
    assert tokenizer.decode([1, ABC, 0]) == "<fim_prefix>abc<|endoftext|>"
    assert tokenizer.decode([byte_id("\xe6"), A_B, 265]) == "\ufffdab"
    assert tokenizer.decode_bytes([byte_id("\xe6"), A_B]) == b"\xe6ab"
    assert tokenizer.token_bytes(SPACE_ABC) == b" abc"


@pytest.mark.parametrize("token", [-1, 268, 1 << 70])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    tokenizer = Tokenizer(AB)
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(InputError, match=f"found {token}, expected 0 to 267"):
            decode([A_B, token])
    with pytest.raises(InputError):
        StreamDecoder(tokenizer).add(token)


any_ids = st.lists(st.integers(0, len(TRAINED.vocab.tokens) - 1))
# Ids of bytes that begin and continue characters are rare among all ids, and matter most here.
byte_ids = st.lists(st.sampled_from([i for i, t in enumerate(TRAINED.vocab.tokens) if t > b"~"]))


@settings(max_examples=300)
@given(any_ids | byte_ids)
def test_stream_equals_whole_decode(tokens: list[int]) -> None:
    stream = StreamDecoder(TRAINED)
    pieces = [stream.add(token) for token in tokens]
    assert "".join(pieces) + stream.flush() == TRAINED.decode(tokens)
    assert stream.flush() == ""


def test_stream_gives_whole_characters_only() -> None:
    stream = StreamDecoder(Tokenizer(AB))
    pieces = [stream.add(byte_id(chr(byte))) for byte in "a🦙é".encode()]
    assert pieces == ["a", "", "", "", "🦙", "", "é"]
    assert stream.add(byte_id("\xf0")) == ""
    assert stream.flush() == "\ufffd"
    assert stream.add(byte_id("\x9f")) == "\ufffd"  # nothing left of the character before


# ------------------------------------------------------------------------------------------------
# Vocabularies


@pytest.mark.parametrize(
    ("tokens", "merge"),
    [
        ((b"a", b"b"), (0, 1)),
        ((b"a", b""), (0, 1)),
        ((b"a", b"aa", b""), (2, 2)),
        ((b"a",), (0, 0)),
    ],
)
def test_merges_that_make_no_token_are_refused(
    tokens: tuple[bytes, ...], merge: tuple[int, int]
) -> None:
    with pytest.raises(FormatError, match=r"merge 0 of .*, expected two tokens that make a token"):
        Tokenizer(Vocab(tokens, id_pairs([merge]), frozenset(), eos_id=None))


@pytest.mark.parametrize("merge", [(0, 2), (-1, 0)])
def test_merges_of_ids_that_no_token_has_are_refused(merge: tuple[int, int]) -> None:
    with pytest.raises(FormatError, match="merges: found an id out of range"):
        Vocab((b"a", b"aa"), id_pairs([merge]), frozenset(), eos_id=None)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": (*AB.tokens[:-1], b"z")},
        {"merges": AB.merges[::-1]},
        {"merges": AB.merges[:-1]},
        {"special_ids": frozenset([0])},
        {"eos_id": 1},
        {"bos_id": 1},
        {"split_digits": False},
    ],
)
def test_vocabularies_are_equal_only_in_everything(change: dict[str, Any]) -> None:
    assert replace(AB, merges=AB.merges.copy()) == AB
    assert replace(AB, **change) != AB


def test_a_flood_of_special_tokens_is_refused() -> None:
    tokens = tuple(b"<%d>" % i for i in range(20_000))
    with pytest.raises(FormatError, match="20000 special tokens"):
        Tokenizer(Vocab(tokens, id_pairs([]), frozenset(range(20_000)), eos_id=None))


def replayed_merges(tokens: list[bytes], special_ids: frozenset[int]) -> list[tuple[int, int]]:
    """What `recover_merges` promises, slowly: encode each token with the merges before it."""
    ids: dict[bytes, int] = {}
    merges: dict[tuple[int, int], int] = {}
    for token_id, token in enumerate(tokens):
        if not token or token in ids or token_id in special_ids:
            continue
        word = [ids.get(bytes([byte]), -1) for byte in token]
        while found := [merges[pair] for pair in pairwise(word) if pair in merges]:
            at = next(i for i, pair in enumerate(pairwise(word)) if merges.get(pair) == min(found))
            word[at : at + 2] = [min(found)]
        if len(token) == 1:
            ids[token] = token_id
        elif len(word) == 2 and -1 not in word:
            merges[word[0], word[1]] = ids[token] = token_id
    return list(merges)


few_letters = st.lists(st.sampled_from(b"aab"), max_size=9).map(bytes)


@settings(max_examples=500)
@given(st.lists(few_letters, max_size=40), st.frozensets(st.integers(0, 40), max_size=3))
def test_recovered_merges_equal_a_replay_for_any_tokens(
    tokens: list[bytes], special_ids: frozenset[int]
) -> None:
    tokens = [*tokens[:2], b"a", b"b", *tokens[2:]]
    expected = id_pairs(replayed_merges(tokens, special_ids))
    assert np.array_equal(recover_merges(tokens, special_ids), expected)


def test_recovered_merges_equal_the_trained_ones() -> None:
    merges, ids = json.loads(LIBRARY.to_str())["model"]["merges"], LIBRARY.get_vocab()
    trained = id_pairs((ids[left], ids[right]) for left, right in merges)
    assert len(trained) > 200
    assert np.array_equal(TRAINED.vocab.merges, trained)


def test_recovering_skips_padding_special_and_repeated_tokens() -> None:
    tokens = [b"<a>", b"a", b"b", b"", b"ab", b"ab", b"a", b"aab", b"", b"xyz", b"<a>"]
    assert recover_merges(tokens, {0, 10}).tolist() == [[1, 2], [1, 4]]
    assert recover_merges([], set()).tolist() == []


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([b"a", b"a" * (1 << 20)], "a token of 1048576 bytes, expected at most 4096"),
        ([bytes([i]) * 4096 for i in range(99)], "very many long tokens"),
        ([b"a" * 31] * (1 << 21), "very many long tokens"),
    ],
)
def test_tokens_too_long_for_a_vocabulary_are_refused(tokens: list[bytes], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        recover_merges(tokens, frozenset())


def test_tokens_with_endless_ways_to_build_them_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("starcoder.formats.merges._MIN_STEPS", 9)
    monkeypatch.setattr("starcoder.formats.merges._STEPS_PER_BYTE", 0)
    with pytest.raises(FormatError, match="endless ways"):
        recover_merges([b"a" * k for k in range(1, 30)], frozenset())


# ------------------------------------------------------------------------------------------------
# Real vocabularies

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_STRING, _ARRAY = 8, 9


def read_value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(length).decode()
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        return [read_value(file, item) for _ in range(count)]
    code = "<" + _SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def read_vocab(path: Path) -> Vocab:
    """The vocabulary of a GGUF file without tensors, which `formats` refuses."""
    fields: dict[str, object] = {}
    with path.open("rb") as file:
        _, _, _, n_fields = struct.unpack("<IIQQ", file.read(24))
        for _ in range(n_fields):
            key = str(read_value(file, _STRING))
            fields[key] = read_value(file, *struct.unpack("<I", file.read(4)))
    texts, kinds, merges = (
        fields[f"tokenizer.ggml.{k}"] for k in ("tokens", "token_type", "merges")
    )
    assert isinstance(texts, list)
    assert isinstance(kinds, list)
    assert isinstance(merges, list)
    byte_of = {char: byte for byte, char in enumerate(BYTE_TEXT)}
    padding = {i for i, text in enumerate(texts) if text == f"[PAD{i}]"}
    special_ids = frozenset(i for i, kind in enumerate(kinds) if kind != 1 and i not in padding)
    tokens = [
        b""
        if i in padding
        else text.encode()
        if i in special_ids
        else bytes(byte_of[char] for char in text)
        for i, text in enumerate(texts)
    ]
    ids = {text: i for i, text in enumerate(texts)}
    pairs = id_pairs((ids[left], ids[right]) for left, right in map(str.split, merges))
    return Vocab(tuple(tokens), pairs, special_ids, eos_id=0)


REAL = {"refact": "refact", "starcoder2": "starcoder"}


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Vocab]:
    return request.param, read_vocab(shared / "data" / f"vocab-{request.param}.gguf")


def test_ids_equal_those_of_the_models_own_tokenizer(real: tuple[str, Vocab], shared: Path) -> None:
    name, vocab = real
    text = (shared / "data" / "tokenize.inp").read_bytes().decode()
    texts = text.split("\n__ggml_vocab_test__\n")
    lines = (shared / "data" / f"tokenize-{REAL[name]}.out").read_text().split("\n")
    expected = [[int(token) for token in line.split()] for line in lines]
    tokenizer = Tokenizer(vocab)
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [tokenizer.decode(tokens) for tokens in expected] == texts
    assert [tokenizer.decode(tokenizer.encode(t, special=False)) for t in texts] == texts


def test_recovered_merges_equal_the_stored_ones(real: tuple[str, Vocab]) -> None:
    name, vocab = real
    assert len(vocab.merges) == {"refact": 48_891, "starcoder2": 48_872}[name]
    assert np.array_equal(recover_merges(vocab.tokens, vocab.special_ids), vocab.merges)
