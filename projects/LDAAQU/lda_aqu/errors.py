"""How the project reports mistakes in what it was given: one line, no traceback."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class InputError(ValueError):
    """A mistake in a config key, a value or a file, worded for the person who can mend it."""


def exit_on_input_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make a command's ``main`` end with ``error: <message>`` and status 2 on :class:`InputError`.

    Every other exception keeps its traceback: it is a defect, not a mistake of the user's.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapper
