"""The one error class for what the user, not the program, has to put right."""


class InputError(ValueError):
    """Bad user input: a path, an option, a file or a missing extra.

    The message is one line that names the value, what was expected and what to do about it, so that a
    command can print it alone, without a traceback.
    """
