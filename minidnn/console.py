"""What all command-line programs share: parsers that complain in one line, what values may be, how a program ends."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from math import inf

from .errors import InputError

MOST = 10**9  # of what is counted: far above any use, and far below where integers of NumPy end


class Parser(argparse.ArgumentParser):
    """Complains by InputError: one line, and under MPI one rank speaks for all."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for text in args:  # argparse takes such a value for the end of the options
            if text.startswith("--") and text.endswith("=--"):
                self.error(f"{text[:-3]}: expected a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        # "argument --batch: 0: expected 1 or more" reads better without the first word and colon
        message = re.sub(r"^argument (\S+): (?=.*: expected )", r"\1 ", message, flags=re.DOTALL)
        raise InputError(f"{message} (see --help)")


def number(kind: type, rule: str, fits: Callable) -> Callable:
    """The type of an option: `kind`, int or float; the rule in words, and as a check. NaN fits none that compares."""

    def convert(text: str):
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{value}: expected {rule}")
        return value

    convert.__name__, convert.kind = kind.__name__, kind
    return convert


def count(least: int = 1, most: int = MOST) -> Callable:
    """A whole number."""
    rule = f"{least} or more" if least else "a number from 0 up"
    return number(int, f"{rule}, at most {most:,}", lambda value: least <= value <= most)


def measure(limit: float = inf) -> Callable:
    """A number that is not negative, and below the limit."""
    rule = "a number from 0 up" + f" and below {limit:g}" * (limit < inf)
    return number(float, rule, lambda value: 0 <= value < limit)


FRACTION = measure(1)
WIDTH = number(float, "a number above 0, at most 64", lambda value: 0 < value <= 64)
IMAGE = count(1, 4096)  # pixels


def one_of(*known: str) -> Callable:
    """One of a few words."""

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(known)}")
        return text

    convert.kind = str
    return convert


def path(text: str) -> str:
    """The name of a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the name of a file or folder")
    return text


path.kind = str


def any_text(stream) -> None:
    """Let a stream take every text: what its encoding lacks, as file names may, is escaped."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


@contextmanager
def memory():
    """Running out of memory is an input that is too large."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"not enough memory ({error or 'none left'}): ask for less") from None


def drop_output() -> None:
    """Let what is still printed go nowhere, and quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_program(main: Callable[..., int | None], *args: object) -> None:
    """Run a program of one process and exit: with what it returns, or with 2 and one line on bad input."""
    any_text(sys.stdout)
    try:
        with memory():
            code = main(*args)
        sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        drop_output()
        code = 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        drop_output()
        sys.stderr.write(f"error: cannot print: {error.strerror or error}\n")
        code = 2
    raise SystemExit(code)
