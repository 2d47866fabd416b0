"""The image files to draw, and the names of the pictures made from them."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.label_files import IMAGE_SUFFIXES
from ..errors import InputError

CONTACT_SHEET = Path("contact_sheet.png")


def find_images(paths: Sequence[str]) -> list[str]:
    """List image files: those named, and those directly inside the folders named, sorted.

    Args:
        paths: files, taken whatever their suffix, and folders, of which the files with a suffix in
            ``IMAGE_SUFFIXES`` are taken (in either case; hidden files are not).

    Returns:
        Absolute paths in the order given, each once.

    Raises:
        InputError: a path does not exist, or a folder holds no image.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            images = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            )
            if not images:
                raise InputError(f"no image in {path} (looked for {', '.join(IMAGE_SUFFIXES)})")
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no such image file or folder: {path}")
    return list(dict.fromkeys(os.path.abspath(file) for file in found))


def picture_names(files: Sequence[str]) -> list[Path]:
    """Name a PNG for each image file, different for different files.

    Returns:
        Relative paths: the images' own, seen from the deepest folder that holds them all, with
        ``.png`` for their suffix; or, where two names would be the same, after all the suffixes.
    """
    files = [os.path.abspath(file) for file in files]
    common_folder = os.path.commonpath([os.path.dirname(file) for file in files])
    images = [Path(os.path.relpath(file, common_folder)) for file in files]
    names = [image.with_suffix(".png") for image in images]
    if len({*names, CONTACT_SHEET}) <= len(names):
        names = [image.with_name(image.name + ".png") for image in images]
    return names
