"""The commands `starcoder` and `starcoder-quantize`, ggml's name for `starcoder quantize`.

Here is how they end; `generate` has what the first does, `report` what it says. Every way out is
quiet: bad input is one line on stderr and exit code 2, Ctrl-C is 130, and a reader that went away
(`| head`) is 141, as for any program that SIGPIPE ends. A stderr on a full disk stops no work, but
the exit code is 2 then. Nothing heavy is imported before `main` can catch a Ctrl-C.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast

from starcoder.cli.streams import forget_output, open_streams
from starcoder.errors import StarcoderError

__all__ = ["main", "quantize_main"]

INTERRUPTED, BAD_INPUT, NO_READER = 130, 2, 141
_NO_MEMORY = "memory: not enough for the model"


def main() -> NoReturn:
    """Run the command line of this process as `starcoder`, and exit."""
    _exit("starcoder", _starcoder)


def quantize_main() -> NoReturn:
    """Run it as `starcoder-quantize`, and exit."""
    _exit("starcoder-quantize", _starcoder_quantize)


def _exit(program: str, command: Callable[[], Any]) -> NoReturn:
    notes = open_streams()
    _show_notices(program)
    # numpy's BLAS starts threads that we never use, and where it cannot, it ends us by SIGINT.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run(program, command)
        sys.stdout.flush()
    except BrokenPipeError:
        code = NO_READER
        forget_output()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # a full disk behind stdout
        code = _complain(
            program,
            f"{error.filename or 'input or output'}: {(error.strerror or str(error)).lower()}",
        )
        forget_output()
    except StarcoderError as error:
        code = _complain(program, str(error))
    except MemoryError:
        code = _complain(program, _NO_MEMORY)
    except ImportError as error:
        if "failed to map" not in str(error) and "allocate memory" not in str(error):
            raise
        code = _complain(program, _NO_MEMORY)  # for a library that is loaded when it is needed
    sys.exit(code or (BAD_INPUT if notes.is_lost else 0))


def _run(program: str, command: Callable[[], Any]) -> int:
    import typer

    from starcoder.cli.usage import explain

    # The class has no public name: older typers take it from click, newer have a copy.
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
    built = command()
    try:
        with built.make_context(program, sys.argv[1:]) as context:
            return int(built.invoke(context) or 0)
    except typer.Exit as end:
        return end.exit_code
    except usage_error as error:
        return _complain(program, explain(error, program, sys.argv[1:]))


@functools.cache  # `app` keeps what it is told: twice would be two commands of each name
def _starcoder() -> Any:
    from typer.main import get_command

    from starcoder.cli.bench import bench
    from starcoder.cli.convert import convert
    from starcoder.cli.generate import app
    from starcoder.cli.inspect import inspect
    from starcoder.cli.quantize import quantize

    for command_function in (convert, quantize, inspect, bench):
        app.command()(command_function)
    return get_command(app)


@functools.cache
def _starcoder_quantize() -> Any:
    import typer
    from typer.main import get_command

    from starcoder.cli.generate import SETTINGS
    from starcoder.cli.quantize import quantize

    app = typer.Typer(**SETTINGS)
    app.command()(quantize)
    return get_command(app)


def _complain(program: str, message: str) -> int:
    line = " ".join(message.split())
    try:
        print(f"{program}: error: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        forget_output()
        return NO_READER
    return BAD_INPUT


def _show_notices(program: str) -> None:
    """Notices of the package, such as what a model's file lacks, are lines on stderr."""
    logging.raiseExceptions = False  # on a closed stderr
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{program}: note: %(message)s"))
    logging.getLogger("starcoder").handlers = [handler]
