"""How the project reports mistakes in what it was given: one line, no traceback."""

import difflib
import errno
import functools
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of the OSErrors that writing raises where the disk, not the program, is the reason."""


MISFITS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NotImplementedError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What libraries raise for values that do not fit."""


class InputError(ValueError):
    """A mistake in a config key, a value or a file, worded for the person who can mend it."""


def shorten(value: object) -> str:
    """A value for a message, cut short."""
    return textwrap.shorten(repr(value), 80, placeholder="...")


def first_few(values: list) -> str:
    """The first values of a list, for a message."""
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def one_line(error: BaseException) -> str:
    """The kind of an error and its text, cut short in the middle, for a message."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


@contextmanager
def as_input_error(what: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Raise errors of these kinds as an :class:`InputError` of one line, ``<what>: <error>``.

    For what a library is given by the user; an InputError itself passes as it is. Where the error
    was raised in a file of the user's, as one that registers an upsampler, that place is named.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what}: {one_line(error)}{_place_in_users_code(error)}") from error


def _place_in_users_code(error: BaseException) -> str:
    """``" (FILE, line N)"`` of the innermost call that is in a file of no library, or ""."""
    libraries = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")
    called = traceback.extract_tb(error.__traceback__)[2:]  # by what catches the error
    for call in reversed(called):
        if not call.filename.startswith(libraries) and "site-packages" not in call.filename:
            return f" ({call.filename}, line {call.lineno})"
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the known name nearest to ``name``, or "" where none is near.

    Args:
        name: a name that is not known; upper and lower case count as the same.
        known: the names that are.
    """
    originals = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), originals, 1)
    return f"; did you mean {originals[near[0]]}?" if near else ""


def mistake_in(error: BaseException) -> str | None:
    """The one line that an error comes down to, or None where it is a defect of the program.

    It is a line for an :class:`InputError`; where a disk is full or read-only, a file missing or
    not to be opened; where a worker of a data loader was killed.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            "a worker process of the data loader was killed, as happens where memory runs out: "
            f"set DATALOADER.NUM_WORKERS lower, and go on with --resume ({one_line(error)})"
        )
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in FULL_DISK
        if full or (cause is error and isinstance(cause, OSError) and cause.filename is not None):
            where = f" ({str(cause.filename)!r})" if cause.filename is not None else ""
            return f"{cause.strerror}{where}"
        cause = cause.__cause__ or cause.__context__  # torch's writer fails in turn
    return None


def exit_on_input_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make a command's ``main`` end with ``error: <message>`` and status 2 on a mistake.

    Which are mistakes says :func:`mistake_in`; every other exception keeps its traceback.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            line = mistake_in(error)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            sys.exit(2)

    return wrapper
