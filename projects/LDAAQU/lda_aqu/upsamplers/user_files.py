"""Upsamplers of the user's own, from Python files outside the package."""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterable

from ..errors import InputError

logger = logging.getLogger(__name__)


def import_upsampler_files(paths: Iterable[str]) -> None:
    """Run Python files that register upsamplers; each once, however often it is named.

    Args:
        paths: of the files; relative ones start at the working directory.

    Raises:
        InputError: one does not exist, its name does not end in .py, or it registers a name that
            is taken.
    """
    for path in paths:
        if not os.path.isfile(path) or not path.endswith(".py"):
            raise InputError(f"MODEL.UPSAMPLER_FILES: {path!r} is not a Python file that exists")
        name = os.path.realpath(path)  # of the module: no name that another module may have
        if name in sys.modules:
            continue
        logger.warning("Running %s, as MODEL.UPSAMPLER_FILES says", path)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, InputError):
                raise InputError(f"MODEL.UPSAMPLER_FILES: {path!r}: {error}") from error
            raise
