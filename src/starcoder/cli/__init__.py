"""The command `starcoder`. Here is how it ends; `generate` has what it does, `report` what it says.

Every way out is quiet: bad input is one line on stderr and exit code 2, Ctrl-C is 130, and a
reader that went away (`| head`) is 141, as for any program that SIGPIPE ends. Nothing heavy is
imported before `main` can catch a Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn, cast

from starcoder.errors import StarcoderError

__all__ = ["main"]

INTERRUPTED, BAD_INPUT, NO_READER = 130, 2, 141
_NO_MEMORY = "memory: found too little, expected room for the model"


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    _open_streams()
    _show_notices()
    # numpy's BLAS starts threads that we never use, and where it cannot, it ends us by SIGINT.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        code = _forget_output(NO_READER)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # a full disk behind stdout, stdin that is a directory
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror}")
        _forget_output(code)
    except StarcoderError as error:
        code = _complain(str(error))
    except MemoryError:
        code = _complain(_NO_MEMORY)
    except ImportError as error:
        if "failed to map" not in str(error) and "allocate memory" not in str(error):
            raise
        code = _complain(_NO_MEMORY)  # for a library that is loaded when it is first needed
    sys.exit(code)


def _run() -> int:
    import typer
    from typer.main import get_command

    from starcoder.cli.bench import bench
    from starcoder.cli.convert import convert
    from starcoder.cli.generate import app
    from starcoder.cli.inspect import inspect
    from starcoder.cli.quantize import quantize

    for command_function in (convert, quantize, inspect, bench):
        app.command()(command_function)
    # The class has no public name: older typers take it from click, newer have a copy.
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
    command = get_command(app)
    try:
        with command.make_context("starcoder", sys.argv[1:]) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:
        return end.exit_code
    except usage_error as error:
        return _complain(f"{error.format_message().rstrip('.')}; see starcoder --help")


def _complain(message: str) -> int:
    line = " ".join(message.split())
    try:
        print(f"starcoder: error: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        return _forget_output(NO_READER)
    return BAD_INPUT


def _forget_output(code: int) -> int:
    """Send what is still buffered nowhere, so that nothing complains at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return code


def _show_notices() -> None:
    """Notices of the package, such as what a model's file lacks, are lines on stderr."""
    logging.raiseExceptions = False  # on a full or closed stderr
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("starcoder: note: %(message)s"))
    logging.getLogger("starcoder").handlers = [handler]


def _open_streams() -> None:
    """Write UTF-8 in every locale; streams that the caller closed lead nowhere."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
