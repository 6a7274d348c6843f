"""Runs another program as we ask: in that program's Python, which need not have ours.

    python FOLDER_OF_THIS_FILE MODULE

MODULE is a neighbor of this file. It has the name of the PROGRAM, and `load(settings)`, which gives
something with a `note` on its settings and two methods, `prompt` and `decode`. Each runs the
task once and returns the seconds.

The first line we write is {"program": ...} or {"missing": package}. Then every line of stdin,
{"do": "load", ...}, {"do": "prompt"} or {"do": "decode"}, is answered by one line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the program prints goes to stderr,
        sys.stdout = sys.stderr  # and in the order in which it was said

        def answer(**values: object) -> None:
            print(json.dumps(values), file=answers, flush=True)

        try:
            module = importlib.import_module(sys.argv[1])
        except ModuleNotFoundError as error:
            answer(missing=error.name)
            return
        answer(program=module.PROGRAM)
        program: Any = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["do"] == "load":
                    program = None  # there may be no room for two
                    program = module.load(request)
                    answer(note=program.note)
                else:
                    answer(seconds=getattr(program, request["do"])())
            except Exception as error:  # whatever it is, the user shall read it
                answer(error=f"{type(error).__name__}: {error}")


main()
