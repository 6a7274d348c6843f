"""Ids of special tokens, as files name them: the end of a text, its beginning, padding.

Files name ids that their vocabulary has not: a fine-tune kept the ids of GPT-2, or named a token
that was never added. Such a file works without, so that is a notice and no error.
"""

from __future__ import annotations

from starcoder.model.vocab import Vocab

__all__ = ["find_id", "known_id"]

_GPT2_END = 50256


def find_id(token_id: object, vocab: Vocab) -> int | None:
    """The id that a file means by `token_id`; None where no token has it.

    tiny_starcoder_py and others of the family still name GPT-2's 50256, which they do not have;
    they mean their own `<|endoftext|>`.
    """
    if type(token_id) is int and 0 <= token_id < len(vocab.tokens):
        return token_id
    return vocab.find("<|endoftext|>") if token_id == _GPT2_END else None


def known_id(key: str, token_id: int, vocab: Vocab, notices: list[str]) -> int | None:
    """The same for an id that a file names under `key`; that no token has it is a notice."""
    found = find_id(token_id, vocab)
    if found is None:
        most = len(vocab.tokens) - 1
        notices.append(f"{key} is {token_id}, which no token has: ids go from 0 to {most}")
    return found
