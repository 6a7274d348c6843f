"""A command line that was put wrongly: what is wrong with it, and how it goes, in one line."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from starcoder.errors import InputError

__all__ = ["Group", "explain"]

# Options of ggml's and llama.cpp's programs that would be read as one of ours and its value.
_NOT_HERE = {
    "-ngl": "GPUs are not supported",
    "-np": "LLM.generate of the Python package takes many prompts at once",
}
_BRACES = str.maketrans("", "", "{}")  # of what must be given, in newer typers


class Group(TyperGroup):
    """Commands, and what to do with a word that is none of them: mostly the rest of a prompt."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first of `args` names.

        Raises:
            InputError: there is none of that name.
        """
        found = args[0]
        if not found.startswith("-") and self.get_command(ctx, found) is None:
            expected = f"a command ({', '.join(self.list_commands(ctx))})"
            advice = "a prompt of several words goes in quotes, as in -p 'def f'"
            raise InputError("command line", repr(found[:40]), expected, advice)
        return super().resolve_command(ctx, args)


def explain(error: Any, program: str, args: list[str]) -> str:
    """What a usage error of click's says, and which command's help has more."""
    cause = next((arg for arg in args if _is_cause(arg, error)), None)
    if cause is not None:
        stranger = cause.rstrip("0123456789")
        advice = f"; {_NOT_HERE[stranger]}" if stranger in _NOT_HERE else ""
        message = f"No such option: {stranger}{advice}"
    else:
        message = error.format_message().rstrip(".")
    if error.ctx is None:
        return f"{message}; see {program} --help"
    if any(param.param_type_name == "argument" for param in error.ctx.command.params):
        usage = error.ctx.get_usage().replace("Usage", "usage", 1)
        message += f"; {usage.translate(_BRACES)}"
    return f"{message}; see {error.ctx.command_path} --help"


def _is_cause(arg: str, error: Any) -> bool:
    """Whether an option of another program was read as one of ours and its value: -n of -ngl."""
    flag, value = arg[:2], arg[2:]
    flags = getattr(getattr(error, "param", None), "opts", ())
    return value[:1].isalpha() and flag in flags and repr(value) in error.message
