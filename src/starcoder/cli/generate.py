"""`starcoder` without a subcommand: continue a prompt. The options are ggml's examples/common.

Text goes to stdout as it comes, everything else to stderr. A dash in an option may be written
as an underscore.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starcoder import __version__
from starcoder.cli import INTERRUPTED, kept, report
from starcoder.cli.flags import takes_options
from starcoder.cli.kept import PromptCache
from starcoder.cli.numbers import size, whole
from starcoder.cli.rewrite import Pre
from starcoder.cli.text_file import as_text, read_file, read_stdin
from starcoder.cli.usage import Group
from starcoder.errors import InputError, StarcoderError

if TYPE_CHECKING:
    from starcoder.completion.stream import Stream
    from starcoder.llm import LLM

__all__ = ["SETTINGS", "app"]

SETTINGS: dict[str, Any] = {  # of a command line, whatever it does
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # rich takes 60 ms to import
    "context_settings": {
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
}
_EMPTY = "the prompt is empty; the text starts at the beginning of a document"
app = typer.Typer(cls=Group, **SETTINGS)

_PYTHON_PROMPTS = (
    "def fibonacci(n):\n",
    "def is_prime(n: int) -> bool:\n",
    "class LinkedList:\n",
    "# Read a CSV file and print the sum of each column\nimport csv\n",
)
_PROMPTS = (
    *_PYTHON_PROMPTS,
    "fn main() {\n",
    "#include <stdio.h>\n\nint main(",
    "function debounce(callback, delay) {\n",
    "SELECT name, COUNT(*) FROM",
    "#!/bin/sh\n# Back up a folder\n",
    "package main\n\nimport (\n",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"starcoder {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
@takes_options(before="n_ctx")
def generate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help="Model file, directory or Hub name. Default: the small one in the package.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help="Text to continue; - reads stdin. Default: random."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the prompt from a file.")
    ] = None,
    n_ctx: Annotated[
        int | None,
        whole("-c", "--context", "Most tokens in all. Default: the model's.", low=1),
    ] = None,
    threads: Annotated[
        int | None, whole("-t", "--threads", "Default: all cores.", low=1, high=1024)
    ] = None,
    n_batch: Annotated[
        int,
        whole("-b", "--batch-size", "Prompt tokens in one step.", low=1, high=1 << 20),
    ] = 512,
    kv_memory: Annotated[
        int | None, size("--kv-memory", "For keys and values. Default: for one context.")
    ] = None,
    prompt_cache: PromptCache = None,
    pre: Pre = None,
    token_test: Annotated[
        Path | None,
        typer.Option("-tt", "--token-test", help="Check the tokenizer: lines of text => id,id."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to stdout, and no text.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print it and exit."),
    ] = False,
    **options: Any,
) -> int:
    """Run StarCoder models on the CPU: continue a prompt.

    An option may be spelled with dashes or underscores: --top-k, --top_k.
    """
    if context.invoked_subcommand is not None:
        return 0
    if options["seed"] < 0:
        options["seed"] = random.SystemRandom().randrange(1 << 31)
    examples = _PYTHON_PROMPTS if model is None else _PROMPTS
    text = _read_prompt(prompt, file, options["seed"], examples)
    tests = None if token_test is None else report.token_tests(token_test)
    clock = report.Clock()
    llm = _load(model, threads, n_ctx, n_batch, kv_memory, pre)
    if prompt_cache is not None and not kept.load(llm, prompt_cache):
        prompt_cache = None
    stream = llm.stream(text, **options)  # what is wrong with a prompt comes before the facts
    if not text:
        logging.getLogger("starcoder").warning(_EMPTY)
    report.facts(llm)
    if tests is not None:
        report.token_test(llm, tests)
    finished = _write(stream, None if as_json else text)
    if prompt_cache is not None:
        kept.save(llm, prompt_cache)
    if as_json:
        print(report.json_line(stream.completion, llm.facts), flush=True)
    report.timings(stream.completion, llm.facts, clock)
    return 0 if finished else INTERRUPTED


def _load(
    model: str | None,
    threads: int | None,
    n_ctx: int | None,
    n_batch: int,
    kv_memory: int | None,
    pre: str | None,
) -> LLM:
    from starcoder import pocket
    from starcoder.llm import LLM

    return LLM(
        pocket.PATH if model is None else model,
        n_threads=threads,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_parallel=1,
        kv_memory=kv_memory,
        pre=pre,
    )


def _write(stream: Stream, prompt: str | None) -> bool:
    """Write prompt and text to stdout as they come, or nothing; False: Ctrl-C ended it."""
    finished = True
    try:
        report.settings(stream)
        if prompt is not None:
            print(prompt, end="", flush=True)
        for piece in stream:
            if prompt is not None and piece.text:
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
        finished = False
    except StarcoderError:  # said on a line of its own
        if prompt is not None:
            print(flush=True)
        raise
    if prompt is not None:
        print(flush=True)
    return finished


# ---------------------------------------------------------------------------------------------


def _read_prompt(
    prompt: str | None, file: Path | None, seed: int, examples: tuple[str, ...]
) -> str:
    if prompt is not None and file is not None:
        raise InputError("-p and -f", "both", "one prompt", "leave one of them out")
    if file is not None:
        return read_file(file, "-f").removesuffix("\n")
    if prompt == "-":
        return read_stdin().removesuffix("\n")
    if prompt is None:
        return random.Random(seed).choice(examples)
    # What is not UTF-8 in an argument comes as lone surrogates; make it bytes again.
    return as_text(prompt.encode("utf-8", "surrogateescape"), "-p")
