"""How the project reports mistakes in what it was given: one line, no traceback."""

import difflib
import errno
import functools
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


def one_line(error: BaseException) -> str:
    """The kind of an error and its text, cut short in the middle, for a message."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


@contextmanager
def as_input_error(what: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Raise errors of these kinds as an :class:`InputError` of one line, ``<what>: <error>``.

    For what a library is given by the user; an InputError itself passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what}: {one_line(error)}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the known name nearest to ``name``, or "" where none is near.

    Args:
        name: a name that is not known; upper and lower case count as the same.
        known: the names that are.
    """
    originals = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), originals, 1)
    return f"; did you mean {originals[near[0]]}?" if near else ""


def exit_on_input_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make a command's ``main`` end with ``error: <message>`` and status 2 on :class:`InputError`.

    So too where a disk is full or read-only. Every other exception keeps its traceback: it is a
    defect, not a mistake of the user's.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            where = f" ({error.filename!r})" if error.filename else ""
            print(f"error: {error.strerror}{where}", file=sys.stderr)
            sys.exit(2)

    return wrapper
