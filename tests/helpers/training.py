"""What tests of the recipe share: a function to learn from, and a tokenizer that has."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer

from training.corpus import File
from training.tokenizer import train_tokenizer

__all__ = ["ADD", "small_tokenizer"]

ADD = '''def add(a, b):
    """Add 2 numbers, the größer one last."""
    total = a + b * 10
    return total
'''


@cache
def small_tokenizer() -> Tokenizer:
    """320 tokens, made of `ADD` alone."""
    return train_tokenizer([File("p", f"{i}.py", ADD * 8) for i in range(4)], 320, 1)
