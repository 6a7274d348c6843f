"""Answers of a wanted form: JSON of a schema, what a regular expression matches, a Lark grammar.

The llguidance package says after each token which ones may follow; it is loaded when the first such
answer is asked for. What it says depends on the form and the tokens so far alone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import InputError
from starcoder.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["FORMS", "Grammar", "Grammars"]

FORMS = {
    "json_schema": "a JSON schema",
    "regex": "a regular expression of Rust's regex library",
    "grammar": "a grammar in Lark's format, whose rule start is the answer",
}
# Between the parts of JSON: a model at a loss would go on with blanks for ever.
_BLANKS = r"[ \n\r\t]{1,64}"
_MAX_SHOWN = 200  # characters of what the package says is wrong


class Grammar:
    """What one answer may go on with; a constraint of the sampler.

    Attributes:
        is_over: whether the answer is complete and cannot be longer.
    """

    is_in_prompt = False

    def __init__(self, name: str, matcher: LLMatcher, n_vocab: int) -> None:
        self._name, self._matcher, self._n_vocab = name, matcher, n_vocab
        self.is_over = False

    def allowed(self) -> NDArray[np.intp] | None:
        """The ids that may come next, ascending; those that end an answer where it may end.

        Raises:
            InputError: what may come next is too much work to find.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.check()
        ids = np.unpackbits(bits, bitorder="little")[: self._n_vocab].nonzero()[0]
        if not len(ids):
            raise InputError(self._name, "nothing that the vocabulary can spell", FORMS[self._name])
        return ids

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        self._matcher.consume_token(token)
        self.check()
        self.is_over = self._matcher.is_stopped()

    def check(self) -> None:
        """Refuse a grammar that is at fault, or has come to an end where nothing fits it."""
        if self._matcher.is_error():
            raise _refusal(self._name, self._matcher.get_error())


class Grammars:
    """Makes the grammars of a vocabulary's answers.

    Args:
        tokenizer: it spells what a grammar leaves no choice about.

    Raises:
        InputError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            advice = "pip install 'starcoder-py[grammar]'"
            names = ", ".join(FORMS)
            raise InputError(
                names, "no package llguidance", "it for such answers", advice
            ) from None
        self._library, self._n_vocab = llguidance, len(tokenizer.vocab.tokens)
        spelling = _Spelling(tokenizer)
        wrapped = llguidance.TokenizerWrapper(spelling)
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=spelling.end_ids)
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def make(self, name: str, text: str) -> Grammar:
        """The grammar of one answer; `name` is that of the option, one of `FORMS`.

        Raises:
            InputError: it is none, or says what the package does not know, or nothing fits it.
        """
        make = self._library.LLMatcher
        try:
            if name == "json_schema":
                source = make.grammar_from_json_schema(
                    text, defaults={"whitespace_pattern": _BLANKS}
                )
            else:
                source = (make.grammar_from_regex if name == "regex" else make.grammar_from_lark)(
                    text
                )
            matcher = make(self._tokenizer, source, log_level=0, limits=self._limits)
        except ValueError as error:
            raise _refusal(name, str(error)) from None
        grammar = Grammar(name, matcher, self._n_vocab)
        grammar.check()
        grammar.allowed()  # most of what is wrong with it shows with the first token
        return grammar


class _Spelling:
    """A tokenizer as llguidance wants it.

    Where a vocabulary has no token that ends a text there is one more, which nobody can choose.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocab, self._encode = tokenizer.vocab, tokenizer.encode
        self.tokens = list(vocab.tokens)
        if not vocab.end_ids:
            self.tokens.append(b"<end>")
        self.end_ids = sorted(vocab.end_ids) or [len(vocab.tokens)]
        self.eos_token_id = self.end_ids[0]
        self.special_token_ids = sorted(vocab.special_ids.union(self.end_ids))

    def __call__(self, text: str) -> list[int]:
        with suppress(InputError):  # where the vocabulary lacks a byte, there is no way to say it
            return self._encode(text, special=False)
        return []


def _refusal(name: str, found: str) -> InputError:
    line = " ".join(found.replace("<non-verbose/>", "").split())
    if line == "NoExtensionBias":
        line = "one that no text fits"
    shown = line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."
    return InputError(name, shown, FORMS[name])
