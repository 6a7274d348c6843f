"""What the model's own text teaches it: where it loops, where it ends well, where it should have.

A small model that always takes the likeliest token soon repeats a line for ever. So it writes the
bodies of functions of the training split, greedily, through starcoder itself. In what it wrote

- a token that completes a sequence of `NGRAM` for the third time is to be less likely;
- the body of a function that ends, parses and repeats nothing is to be more likely, up to and with
  the token that ends it;
- a body that does not end is given an end: after the last line before it repeats itself, or before
  there was no more room, a line break and <|endoftext|> are to be more likely.

Learning from it is `mend`'s affair.
"""

from __future__ import annotations

import ast
import bisect
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from starcoder import LLM, Completion
from training import measure
from training.measure import Function
from training.tokenizer import END

NGRAM = 8
PROMPT_TOKENS, BODY_TOKENS = 256, 192


class Lesson(NamedTuple):
    """A text, (n,) tokens, and for each of them: 1 likelier, -1 less likely, 0 left alone."""

    ids: list[int]
    signs: list[int]


def write(llm: LLM, functions: Sequence[Function]) -> list[Lesson]:
    """Let the model write bodies, of half of the functions by their header alone."""
    asked = [bare(function) if i % 2 else function for i, function in enumerate(functions)]
    prompts = [llm.tokenize(function.prompt)[-PROMPT_TOKENS:] for function in asked]
    completions = llm.generate(prompts, max_tokens=BODY_TOKENS)
    return [
        lesson
        for function, prompt, completion in zip(asked, prompts, completions, strict=True)
        for lesson in judge(llm, function, prompt, completion)
    ]


def judge(
    llm: LLM, function: Function, prompt: list[int], completion: Completion
) -> Iterator[Lesson]:
    """What one body teaches: what repeats or is good, and where it should have ended."""
    tokens = list(completion.tokens)
    if completion.finish_reason == "stop":
        tokens.append(END)
    signs = [-repeat for repeat in repeats(tokens)]
    body, ended = measure.block(completion.text, function.indent)
    ended = ended or completion.finish_reason == "stop"
    end = _n_tokens(llm, tokens, len(body) + 1)  # with the token that ends it
    if not ended or any(signs[:end]):
        if kept := _whole_lines(llm, function, tokens[: _first_of_three(tokens)]):
            last = [*llm.tokenize("\n"), END]
            yield Lesson(prompt + kept + last, [0] * len(prompt + kept) + [1] * len(last))
    elif is_good(function, body):
        signs[:end] = [1] * end
    if any(signs):
        yield Lesson(prompt + tokens, [0] * len(prompt) + signs)


def bare(function: Function) -> Function:
    """The function by its header alone, at the beginning of a document."""
    header = textwrap.dedent(function.header)
    return Function(header, header, 0)


def repeats(tokens: Sequence[int]) -> list[int]:
    """For each token: 1 if it completes `NGRAM` tokens for the third time or more, else 0."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = [0] * len(tokens)
    for i in range(NGRAM, len(tokens) + 1):
        ngram = tuple(tokens[i - NGRAM : i])
        found[i - 1] = int(seen[ngram] >= 2)
        seen[ngram] += 1
    return found


def is_good(function: Function, body: str) -> bool:
    """Whether a body parses and does something: more than a docstring or `pass`."""
    tree = measure.parse(function, body)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            has_docstring = ast.get_docstring(node) is not None
            return any(not isinstance(x, ast.Pass) for x in node.body[has_docstring:])
    return False


def _n_tokens(llm: LLM, tokens: list[int], n_characters: int) -> int:
    """How many of the tokens have the first `n_characters`, or more."""
    return bisect.bisect_left(
        range(len(tokens)), n_characters, key=lambda k: len(llm.detokenize(tokens[:k]))
    )


def _first_of_three(tokens: list[int]) -> int:
    """Where that ends for the first time which is the first to come thrice; else all tokens."""
    marks = repeats(tokens)
    if 1 not in marks:
        return len(tokens)
    end = marks.index(1) + 1
    ngram = tokens[end - NGRAM : end]
    return next(i for i in range(NGRAM, end) if tokens[i - NGRAM : i] == ngram)


def _whole_lines(llm: LLM, function: Function, tokens: list[int]) -> list[int]:
    """The tokens of as many whole lines as are a good body, without the last break; else none."""
    text = llm.detokenize(tokens)
    while "\n" in text:
        text = text[: text.rindex("\n")].rstrip()
        if is_good(function, text):
            kept = tokens[: _n_tokens(llm, tokens, len(text))]
            return kept if llm.detokenize(kept) == text else []
    return []
