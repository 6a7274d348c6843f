"""Ids of special tokens, as files name them: the end of a text, its beginning, padding.

Files name ids that their vocabulary has not: a fine-tune kept the ids of GPT-2, or named a token
that was never added. Such a file works without, so that is a notice and no error.
"""

from __future__ import annotations

from starcoder.vocab import Vocab

__all__ = ["known_id"]

_GPT2_END = 50256


def known_id(key: str, token_id: int, vocab: Vocab, notices: list[str]) -> int | None:
    """The id that a file names under `key`; None, and a notice, where no token has it.

    tiny_starcoder_py and others of the family still name GPT-2's 50256, which they do not have;
    they mean their own `<|endoftext|>`.
    """
    n_vocab = len(vocab.tokens)
    if 0 <= token_id < n_vocab:
        return token_id
    end = vocab.find("<|endoftext|>")
    if token_id == _GPT2_END and end is not None:
        return end
    notices.append(f"{key} is {token_id}, which no token has: ids go from 0 to {n_vocab - 1}")
    return None
