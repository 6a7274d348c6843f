"""Train the tokenizer: byte-level BPE over single digits, StarCoder's special tokens.

The result is a `tokenizers.Tokenizer`; ids 0 to 18 are the special tokens, in StarCoder's own
order.
"""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import File

# fmt: off
SPECIAL_TOKENS = [
    "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>",
    "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>",
    "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>",
    "<commit_msg>", "<commit_after>", "<reponame>",
]
# fmt: on
END, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = range(4)

TRAINED_ON = 60_000_000  # bytes of source: merges settle long before


def train_tokenizer(files: list[File], vocab_size: int, seed: int) -> Tokenizer:
    """Train on a sample of the corpus.

    Args:
        files: The training split.
        vocab_size: Tokens in all, special ones included.
        seed: Chooses the sample.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(files, seed), trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`."""
    return Tokenizer.from_file(str(path))


def _sample(files: list[File], seed: int) -> list[str]:
    chosen, size = [], 0
    for file in random.Random(seed).sample(files, len(files)):
        chosen.append(file.text)
        size += len(file.text)
        if size >= TRAINED_ON:
            break
    return chosen
