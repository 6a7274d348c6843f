"""Prompts: what a caller may hand in (text, token ids, a list of either) as lists of token ids.

Text that no tokens could make short enough is refused before the work of tokenizing it. Whether
the model has such ids, and the context room for them, is the engine's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starcoder import arguments
from starcoder.errors import InputError
from starcoder.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["check_is_one", "is_many", "prompt_ids", "token_ids"]

_PROMPT = "text, a list of token ids, or a list of these"
_MANY = (str, list, tuple)  # what makes a list of prompts of a list
_SHORTEN = "shorten it, or raise the context with -c or n_ctx if the model allows"


def is_many(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> TypeGuard[list[str] | list[list[int]]]:
    """Whether this is a list of prompts; an empty list is one of none."""
    if not isinstance(prompt, (list, tuple)):
        return False
    return not prompt or not arguments.is_whole(prompt[0])


def check_is_one(prompt: object) -> None:
    """Refuse a list of prompts, with an InputError."""
    if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], _MANY):
        advice = "stream() takes one prompt; generate() takes a list"
        raise InputError("prompt", "a list of prompts", "one prompt", advice)


def prompt_ids(prompt: object, tokenizer: Tokenizer, n_ctx: int) -> list[int]:
    """The token ids of one prompt, at least one: an empty prompt is the start of a document.

    Raises:
        InputError: neither text nor ids, text far too long for a context of `n_ctx` tokens, or
            no text where the model has no token that opens a document.
    """
    if isinstance(prompt, str):
        _check_fits(prompt, tokenizer.max_token_bytes, n_ctx)
        ids = tokenizer.encode(prompt)
    else:
        ids = arguments.token_ids("prompt", prompt, _PROMPT)
    if ids:
        return ids
    vocab = tokenizer.vocab
    start = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
    if start is None:
        advice = "this model has no token that opens a document"
        raise InputError("prompt", "an empty text", "at least one character", advice)
    return [start]


def token_ids(tokens: object) -> list[int]:
    """Token ids that are not a prompt, as a list; raises InputError."""
    advice = "llm.tokenize(text) makes them" if isinstance(tokens, str) else ""
    return arguments.token_ids("tokens", tokens, advice=advice)


def _check_fits(text: str, longest: int, n_ctx: int) -> None:
    """Refuse text of more bytes than `n_ctx` tokens of the `longest` length could spell."""
    n_bytes = len(text)  # at least; counting may take four times as much
    if n_bytes <= n_ctx * longest:
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes > n_ctx * longest:
        found = f"{len(text):,} characters"
        expected = f"at most {n_ctx} tokens, of {longest} bytes at most"
        raise InputError("prompt", found, expected, _SHORTEN)
