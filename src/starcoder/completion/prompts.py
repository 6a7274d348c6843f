"""Prompts: what a caller may hand in (text, token ids, a list of either) as lists of token ids.

Text that no tokens could make short enough is refused before the work of tokenizing it, and text of
too many tokens before its end is healed, as the engine sees only what is left. Whether the model
has such ids, and the context room for a list of them, is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from starcoder import arguments
from starcoder.errors import InputError
from starcoder.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "Prompt",
    "Prompts",
    "check_is_one",
    "grouped",
    "is_many",
    "prompt_ids",
    "repeated",
    "token_ids",
]

Prompt = str | list[int]
Prompts = list[str] | list[list[int]]

_PROMPT = "text, a list of token ids, or a list of these"
_MANY = (str, list, tuple)  # what makes a list of prompts of a list
_MOST_ANSWERS = 1024  # to one prompt
_Answer = TypeVar("_Answer")
_SHORTEN = "shorten it, or raise the context with -c or n_ctx if the model allows"


def is_many(prompt: Prompt | Prompts) -> TypeGuard[Prompts]:
    """Whether this is a list of prompts; an empty list is one of none."""
    if not isinstance(prompt, (list, tuple)):
        return False
    return not prompt or not arguments.is_whole(prompt[0])


def check_is_one(prompt: object) -> None:
    """Refuse a list of prompts, with an InputError."""
    if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], _MANY):
        advice = "stream() takes one prompt; generate() takes a list"
        raise InputError("prompt", "a list of prompts", "one prompt", advice)


def repeated(prompt: Any, n: object) -> list[Any]:
    """A prompt, or each of a list of prompts, `n` times in a row; raises InputError."""
    times = arguments.whole("n", n, 1, _MOST_ANSWERS)
    prompts = prompt if is_many(prompt) else [prompt]
    kept = (list(one) if isinstance(one, Iterator) else one for one in prompts)
    return [one for one in kept for _ in range(times)]


def grouped(answers: list[_Answer], prompt: Any) -> list[_Answer] | list[list[_Answer]]:
    """The answers to what `repeated` made of a prompt; to those of a list, a list for each."""
    if not is_many(prompt):
        return answers
    n = len(answers) // len(prompt) if prompt else 1
    return [answers[i : i + n] for i in range(0, len(answers), n)]


def prompt_ids(prompt: object, tokenizer: Tokenizer, n_ctx: int) -> list[int]:
    """The token ids of one prompt, at least one: an empty prompt is the start of a document.

    Raises:
        InputError: neither text nor ids, text too long for a context of `n_ctx` tokens, or no
            text where the model has no token that opens a document.
    """
    if isinstance(prompt, str):
        _check_fits(prompt, tokenizer.max_token_bytes, n_ctx)
        ids = tokenizer.encode(prompt)
        if len(ids) > n_ctx:
            raise InputError("prompt", f"{len(ids)} tokens", f"at most {n_ctx}", _SHORTEN)
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
