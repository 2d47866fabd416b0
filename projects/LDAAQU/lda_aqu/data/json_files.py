"""Reading a user's JSON files."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{str(path)!r} is no regular file")  # a pipe would be waited for
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from error
