"""How the project reports mistakes in what it was given: one line, no traceback."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of the OSErrors that writing raises where the disk, not the program, is the reason."""


class InputError(ValueError):
    """A mistake in a config key, a value or a file, worded for the person who can mend it."""


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
