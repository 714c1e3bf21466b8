"""The one error class for what the user, not the program, has to put right."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, what cannot be shown (newlines, control characters, bytes of no encoding) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """Bad user input: a path, an option, a file or a missing extra.

    The message is one line that names the value, what was expected and what to do about it, so that a
    command can print it alone, without a traceback.
    """

    argument: str | None = None  # of `about`

    @classmethod
    def about(cls, argument: str, value: object, expected: str) -> InputError:
        """``argument=value: expected ...``; a command that has an option for the argument names that instead."""
        error = cls(f"{argument}={value}: expected {expected}")
        error.argument, error.value, error.expected = argument, value, expected
        return error

    def __str__(self) -> str:
        return printable(super().__str__())
