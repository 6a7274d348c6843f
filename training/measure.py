"""What the model is worth, on packages that it never saw, measured through starcoder's own LLM.

Each measurement is a plain function of a model and some files: bits per byte, functions that are
completed to something that parses, lines that are filled in. And what it makes of twenty everyday
prompts, for everybody to judge. What is kept of it is `report`'s affair.
"""

from __future__ import annotations

import ast
import lzma
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from starcoder import LLM
from training.corpus import File
from training.documents import fim_prompt
from training.tokenizer import END

SEED = 2026
STRIDE = 512  # tokens of context that every token has before it, but for the first of a file
FUNCTION_TOKENS = 384
LINE_TOKENS = 64
PREFIX_TOKENS, SUFFIX_TOKENS = 600, 300
N_FUNCTIONS, N_LINES = 200, 300

EVERYDAY_TOKENS = 96
EVERYDAY = (
    "def fibonacci(",
    "def is_even(n):",
    "def factorial(n):",
    "def is_prime(n):",
    "def read_file(path):",
    "class Stack:",
    "import os\n",
    "def gcd(a, b):",
    "def reverse_string(s):",
    "def main():",
    "with open(",
    "def count_words(text):",
    "def binary_search(items, target):",
    "class Point:\n    def __init__(self, x, y):",
    "for i in range(",
    "def parse_args():",
    "def quicksort(items):\n",
    "def load_json(path):",
    "try:\n    import numpy as np\n",
    'def max_of_list(numbers):\n    """Return the largest number."""',
)


def xz_bits_per_byte(files: Sequence[File]) -> dict[str, float]:
    """Bits per byte of `xz -9e`: of each file by itself, as the model has them, and of one stream.

    One stream is its best case: what a file repeats of any other costs it next to nothing.
    """
    data = [file.text.encode() for file in files]
    size = sum(map(len, data))
    return {
        "xz -9e, every file by itself": 8 * sum(map(_xz_size, data)) / size,
        "xz -9e, all files as one stream": 8 * _xz_size(b"".join(data)) / size,
    }


def _xz_size(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def bits_per_byte(llm: LLM, files: Sequence[File]) -> float:
    """Bits that the model needs for a byte of source; the end of each file is paid for too."""
    bits, n_bytes = 0.0, 0
    for file in files:
        bits += _bits(llm, [END, *llm.tokenize(file.text), END])
        n_bytes += len(file.text.encode())
    return bits / n_bytes


def _bits(llm: LLM, ids: list[int]) -> float:
    """Bits of ids[1:], each given what lies before it in a window of the model's context."""
    context, bits, scored = llm.facts.max_ctx, 0.0, 0  # `scored`: ids[1 : scored + 1] are done
    while scored < len(ids) - 1:
        start = max(0, scored - STRIDE) if scored else 0
        window = ids[start : start + context]
        targets = ids[start + 1 : start + 1 + len(window)]
        logits = llm.logits(window)[scored - start : len(targets)].astype(np.float64)
        chosen = targets[scored - start :]
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        bits += float((total - logits[np.arange(len(chosen)), chosen]).sum()) / math.log(2)
        scored += len(chosen)
    return bits


# ----


@dataclass(frozen=True, slots=True)
class Function:
    """A function whose body is to be written: the file up to its body, and its header alone.

    Both end with the header's last line, without a line break: tokens join it to the indentation.
    """

    prompt: str
    header: str
    indent: int


def functions(files: Sequence[File]) -> list[Function]:
    """All functions of two statements or more; a docstring belongs to what is given."""
    return [function for file in files for function in _functions_of(file.text)]


def _functions_of(text: str) -> Iterator[Function]:
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body
        has_docstring = ast.get_docstring(node) is not None
        if len(body) < 2 + has_docstring or body[0].lineno == node.lineno:
            continue
        last = body[0].end_lineno if has_docstring else body[0].lineno - 1
        assert last is not None
        prompt, header = "".join(lines[:last]), "".join(lines[node.lineno - 1 : last])
        yield Function(prompt.rstrip(), header.rstrip(), node.col_offset)


def block(text: str, indent: int) -> tuple[str, bool]:
    """The lines of `text` that belong to a function so indented, and whether it ended."""
    kept: list[str] = []
    lines = text.splitlines(keepends=True)
    depth = 0  # open brackets: what they hold may stand anywhere
    for line in lines:
        is_code = bool(line.strip()) and not line.lstrip().startswith("#")
        ends = len(line) - len(line.lstrip()) <= indent and line.endswith("\n")
        if depth <= 0 and is_code and ends:
            return "".join(kept), True
        kept.append(line)
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
    return "".join(kept), False


def parse(function: Function, body: str) -> ast.Module | None:
    """Header and body as Python, a method under an `if True:`; None if they are none."""
    source = function.header + body
    if function.indent:
        source = "if True:\n" + source
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def complete_functions(llm: LLM, files: Sequence[File], n: int = N_FUNCTIONS) -> dict[str, float]:
    """Write the bodies of some functions, greedily; the shares that end, and that parse.

    A body that is not at its end after `FUNCTION_TOKENS` tokens counts as one that does not parse;
    `parse_whole_lines` counts it by its whole lines.
    """
    chosen = random.Random(SEED).sample(functions(files), n)
    room = llm.facts.max_ctx - FUNCTION_TOKENS
    prompts = [llm.tokenize(function.prompt)[-room:] for function in chosen]
    completions = llm.generate(prompts, max_tokens=FUNCTION_TOKENS)
    ended = parsed = whole_lines = 0
    for function, completion in zip(chosen, completions, strict=True):
        body, at_end = block(completion.text, function.indent)
        at_end = at_end or completion.finish_reason == "stop"
        ended += at_end
        parsed += at_end and parse(function, body) is not None
        whole = body if at_end else body[: body.rfind("\n") + 1]
        whole_lines += parse(function, whole) is not None
    return {"n": n, "end": ended / n, "parse": parsed / n, "parse_whole_lines": whole_lines / n}


# ----


@dataclass(frozen=True, slots=True)
class Line:
    """A line to be filled in, with the line break and the indentation before it."""

    prefix: str
    middle: str
    suffix: str


def lines(files: Sequence[File]) -> list[Line]:
    """All lines of code of ten characters or more from the middle of files."""
    found = []
    for file in files:
        rows = file.text.splitlines(keepends=True)
        for i in range(len(rows) // 10 + 3, len(rows) * 9 // 10):
            middle = rows[i].strip()
            if len(middle) >= 10 and not middle.startswith("#") and rows[i].endswith("\n"):
                prefix = "".join(rows[:i]).rstrip()
                found.append(Line(prefix, middle, "\n" + "".join(rows[i + 1 :])))
    return found


def fill_lines(llm: LLM, files: Sequence[File], n: int = N_LINES) -> dict[str, dict[str, float]]:
    """Fill some lines in, greedily: exact matches and edit similarity, by the prompt's order."""
    chosen = random.Random(SEED).sample(lines(files), n)
    prefixes = [llm.tokenize(line.prefix)[-PREFIX_TOKENS:] for line in chosen]
    suffixes = [llm.tokenize(line.suffix)[:SUFFIX_TOKENS] for line in chosen]
    prompts = {"prefix only": prefixes}
    for name, suffix_first in (("prefix, suffix", False), ("suffix, prefix", True)):
        pairs = zip(prefixes, suffixes, strict=True)
        prompts[name] = [fim_prompt(prefix, suffix, suffix_first) for prefix, suffix in pairs]
    return {name: _fill(llm, chosen, some) for name, some in prompts.items()}


def _fill(llm: LLM, chosen: Sequence[Line], prompts: list[list[int]]) -> dict[str, float]:
    exact, similar = 0, 0.0
    for line, completion in zip(chosen, llm.generate(prompts, max_tokens=LINE_TOKENS), strict=True):
        got = completion.text.lstrip().split("\n")[0].rstrip()
        exact += got == line.middle
        similar += 1 - edit_distance(got, line.middle) / max(len(got), len(line.middle))
    n = len(chosen)
    return {"n": n, "exact_match": exact / n, "edit_similarity": similar / n}


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest characters to insert, delete or replace."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


# ----


def everyday(llm: LLM) -> list[dict[str, str]]:
    """What the model makes of everyday prompts, greedily."""
    completions = llm.generate(list(EVERYDAY), max_tokens=EVERYDAY_TOKENS)
    return [
        {"prompt": prompt, "text": completion.text, "finish_reason": completion.finish_reason}
        for prompt, completion in zip(EVERYDAY, completions, strict=True)
    ]
