"""How the project reports mistakes in what it was given: one line, no traceback."""

import difflib
import errno
import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of the OSErrors that writing raises where the disk, not the program, is the reason."""


class InputError(ValueError):
    """A mistake in a config key, a value or a file, worded for the person who can mend it."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean X?"`` with the known name nearest to ``name``, or "" where none is near.

    Args:
        name: a name that is not known; upper and lower case count as the same.
        known: the names that are.
        cutoff: the similarity, from 0 to 1, from which on a name is near.
    """
    originals = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), originals, 1, cutoff)
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
