"""The one error class for what the user, not the program, has to put right."""


def printable(text: str) -> str:
    """`text` on one line, what cannot be shown (newlines, control characters, bytes of no encoding) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """Bad user input: a path, an option, a file or a missing extra.

    The message is one line that names the value, what was expected and what to do about it, so that a
    command can print it alone, without a traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__())
