"""Vocabularies: of merges that a test names, and one that the library trained; texts to try."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from starcoder.formats.merges import recover_merges
from starcoder.model.vocab import BYTE_TEXT, Vocab
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.tiny import SPECIALS

BYTES = [bytes([i]) for i in range(256)]
SAMPLE = """def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1)
class Größe:\n    '''Naïve 日本語 text, 🦙 and 🧑‍🚀; it's 2048.'''\n\n
    def __init__(self): pass\n"""


def id_pairs(pairs: Iterable[tuple[int, int]]) -> NDArray[np.int32]:
    return np.array(list(pairs), np.int32).reshape(-1, 2)


def make_vocab(merges: list[tuple[bytes, bytes]], n_padding: int = 3) -> Vocab:
    """Special tokens, then 256 bytes, then what the merges make, then padding."""
    tokens = [*(name.encode() for name in SPECIALS), *BYTES]
    tokens += [left + right for left, right in merges]
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = id_pairs((ids[left], ids[right]) for left, right in merges)
    special_ids = frozenset(range(len(SPECIALS)))
    return Vocab(tuple(tokens + [b""] * n_padding), pairs, special_ids, eos_id=0)


def library_tokenizer() -> tokenizers.Tokenizer:
    """A vocabulary as the library itself trains and runs it: our slow twin."""
    trained = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    trained.train_from_iterator([SAMPLE * 3, Path(__file__).read_text("utf-8")], trainer)
    return trained


LIBRARY = library_tokenizer()


def library_vocab() -> Vocab:
    """The same vocabulary as ours: an id's bytes are what its characters stand for."""
    byte_of = {char: bytes([byte]) for byte, char in enumerate(BYTE_TEXT)}
    n_special = len(SPECIALS)
    ids = LIBRARY.get_vocab()
    texts = sorted(ids, key=ids.__getitem__)
    tokens = [text.encode() for text in texts[:n_special]]
    tokens += [b"".join(byte_of[char] for char in text) for text in texts[n_special:]]
    special_ids = frozenset(range(n_special))
    return Vocab(tuple(tokens), recover_merges(tokens, special_ids), special_ids, eos_id=0)


TRAINED = Tokenizer(library_vocab())
NUMBERS_TOGETHER = Tokenizer(
    replace(make_vocab([(b"1", b"2"), (b" ", b" "), (b"\n", b"\n")]), split_digits=False)
)

code_like = st.text(st.sampled_from("abcdef \n\t_(12'sé日🦙\u00a0\u3000\x1c\u200d"), max_size=60)
few_words = st.text("  \n12a", max_size=30)
marked_up = st.lists(st.sampled_from(SPECIALS) | code_like | st.text(), max_size=8).map("".join)
