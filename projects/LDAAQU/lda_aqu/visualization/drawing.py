"""Draw the predictions for many images into a folder."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.images import read_image_file
from ..data.label_files import UnreadableImageError
from ..errors import InputError
from ..files import make_folder
from .image_files import CONTACT_SHEET, picture_names
from .layout import captioned, contact_sheet, side_by_side
from .predictions import draw_ground_truth, draw_predictions, prediction_kind

logger = logging.getLogger(__name__)


def prepare_output(output: Path, files: Sequence[str]) -> None:
    """Make the folder for the pictures of image files.

    Raises:
        InputError: it cannot be made or written to, or a picture would replace one of the images.
    """
    make_folder(output, "--output")
    pictures = {os.path.abspath(output / name) for name in picture_names(files)}
    replaced = pictures.intersection(map(os.path.abspath, files))
    if replaced:
        raise InputError(f"output folder {output}: would replace the input {min(replaced)}")


def draw_to_folder(
    dataset_dicts: Sequence[dict[str, Any]],
    predict: Callable[[dict[str, Any]], dict[str, Any]],
    metadata: Metadata,
    output: Path,
    score_threshold: float = 0.5,
    value_range: Sequence[float] = (),
) -> list[str]:
    """Save a PNG for each image and a contact sheet of the first ones.

    A picture is the prediction, with the ground truth to its left where the image has some. An
    image that cannot be read is logged as an error, and the others are drawn.

    Args:
        dataset_dicts: images in Detectron2's format; "file_name" alone will do.
        predict: from a dataset dict, with "height" and "width", to a Detectron2 model's output.
        metadata: the names and colours of the classes.
        output: an existing folder, see :func:`prepare_output`. The pictures are called as
            :func:`~.image_files.picture_names` says.
        score_threshold: of instances, in [0, 1].
        value_range: ``INPUT.VALUE_RANGE``, for images of more than 8 bits.

    Returns:
        The image files that could not be drawn.
    """
    drawn, failed = [], []
    names = picture_names([image["file_name"] for image in dataset_dicts])
    with logging_redirect_tqdm([logging.getLogger("lda_aqu")]):
        for dataset_dict, name in zip(tqdm(dataset_dicts, "drawing"), names, strict=True):
            try:
                image = read_image_file(dataset_dict["file_name"], "RGB", value_range)
                picture = _draw(image, dataset_dict, predict, metadata, score_threshold)
            except UnreadableImageError as error:
                logger.error("%s", error)
                failed.append(dataset_dict["file_name"])
                continue
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(output / name)
            drawn.append(name)
    if drawn:
        sheet = contact_sheet([output / name for name in drawn], [str(name) for name in drawn])
        sheet.save(output / CONTACT_SHEET)
    return failed


def _draw(
    image: np.ndarray,
    dataset_dict: dict[str, Any],
    predict: Callable[[dict[str, Any]], dict[str, Any]],
    metadata: Metadata,
    score_threshold: float,
) -> Image.Image:
    file = dataset_dict["file_name"]
    height, width = image.shape[:2]
    stated = dataset_dict.get("height", height), dataset_dict.get("width", width)
    if stated != (height, width):
        raise UnreadableImageError(
            f"image {file} is {height}x{width} (height x width), its dataset says {stated}"
        )
    predictions = predict({**dataset_dict, "height": height, "width": width})
    prediction = Image.fromarray(draw_predictions(image, predictions, metadata, score_threshold))
    truth = draw_ground_truth(image, dataset_dict, metadata, prediction_kind(predictions))
    if truth is None:
        return prediction
    return side_by_side(
        [captioned(Image.fromarray(truth), "ground truth"), captioned(prediction, "prediction")]
    )
