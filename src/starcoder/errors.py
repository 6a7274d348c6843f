"""The errors a user can meet, each one line: where, what was found, what was expected, what to do.

Anything that a file, an option or a prompt can cause ends in one of these; any other exception
is a bug of ours.
"""

__all__ = [
    "FormatError",
    "InputError",
    "MemoryLimitError",
    "StarcoderError",
    "WriteError",
    "printable",
]


def printable(text: str) -> str:
    """Text as one line that does nothing to a terminal: what cannot be printed is a "?".

    Names of files and what is in them may hold line feeds, escapes, or bytes that are no text.
    """
    return "".join(c if c.isprintable() else "?" for c in text)


class StarcoderError(Exception):
    """Base of every error that input can cause.

    Args:
        where: the file, tensor, option or argument at fault.
        found: what was there; or what was not: "no such file", "not enough memory".
        expected: what should have been there; may be empty where `found` says it all.
        advice: what the user can do next; may be empty.
    """

    def __init__(self, where: str, found: str, expected: str, advice: str = "") -> None:
        # The parts are the exception's own arguments, by which it is pickled and copied.
        super().__init__(where, found, expected, advice)
        self.where, self.found, self.expected, self.advice = where, found, expected, advice

    @property
    def finding(self) -> str:
        """What was found, as part of a sentence: "found 3", but "no such file"."""
        is_lack = self.found.startswith(("no ", "not "))
        return self.found if is_lack else f"found {self.found}"

    def __str__(self) -> str:
        line = f"{self.where}: {self.finding}"
        line += f", expected {self.expected}" if self.expected else ""
        return printable(f"{line}; {self.advice}" if self.advice else line)


class FormatError(StarcoderError):
    """A model file that is missing, damaged, unknown, or not what it says it is."""


class InputError(StarcoderError):
    """An option, argument or prompt that cannot be served as given."""


class MemoryLimitError(StarcoderError):
    """The machine has not enough memory for the model or its cache."""


class WriteError(StarcoderError):
    """A file that cannot be written: a full disk, no permission, no such folder."""
