"""Glyphs: a generated data set in COCO format, for trying the project without downloading one.

Each picture shows 3 to 8 characters (the things) over two to four textured regions (the stuff).
What makes it a test of upsampling is its fine structure: thin strokes, outlines, counters, wavy
region borders, and glyphs that partly hide others. So that a few minutes of training suffice,
glyphs are vivid and textures muted, each texture with a tint that it tends to; which glyph it is,
its shape alone can tell. Every label is exact, being drawn together with the picture.

Layout under the data set's root, with ``{split}`` one of ``train`` and ``val``::

    {split}/000000000001.jpg                 RGB pictures
    annotations/instances_{split}.json       COCO instances; masks are compressed RLE
    annotations/panoptic_{split}.json        COCO panoptic; the same masks, and the stuff
    panoptic_{split}/000000000001.png        segment ids as R + 256 G + 256^2 B, 0 = void
    panoptic_stuff_{split}/000000000001.png  0 = any thing, 1.. = stuff, 255 = void
    semantic_{split}/000000000001.png        0.. = things then stuff, 255 = void
    glyphs.json                              what the data set was generated with

Void is the seam, about two pixels wide, between regions. A thing has the same id in both JSON
files, and ids are unique within a split. The pictures are JPEG because Detectron2's panoptic
and semantic loaders expect ``.jpg``.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..errors import InputError
from .coco_masks import describe_mask, encode_mask
from .label_files import IGNORE_LABEL
from .panoptic_files import id2rgb

logger = logging.getLogger(__name__)

# In the form of Detectron2's COCO_CATEGORIES, things first, each kind in order of id. Like COCO's,
# the ids have gaps: code that takes an id for an index fails here too. No glyph is another's
# mirror image, so that horizontal flips keep the classes apart.
GLYPHS_CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "A", "supercategory": "letter", "isthing": 1, "color": [228, 26, 28]},
    {"id": 3, "name": "K", "supercategory": "letter", "isthing": 1, "color": [255, 127, 0]},
    {"id": 5, "name": "S", "supercategory": "letter", "isthing": 1, "color": [247, 129, 191]},
    {"id": 8, "name": "4", "supercategory": "digit", "isthing": 1, "color": [240, 220, 40]},
    {"id": 9, "name": "8", "supercategory": "digit", "isthing": 1, "color": [0, 210, 213]},
    {"id": 21, "name": "stripes", "supercategory": "texture", "isthing": 0, "color": [90, 99, 200]},
    {"id": 22, "name": "checker", "supercategory": "texture", "isthing": 0, "color": [102, 90, 60]},
    {"id": 24, "name": "dots", "supercategory": "texture", "isthing": 0, "color": [166, 216, 84]},
    {"id": 25, "name": "speckle", "supercategory": "texture", "isthing": 0, "color": [229, 99, 90]},
]

SPLITS = ("train", "val")

RECORD_NAME = "glyphs.json"

# Raised with every change of what is drawn, so that a data set of an older kind is noticed.
_GENERATOR_VERSION = 1

_THINGS = [category for category in GLYPHS_CATEGORIES if category["isthing"]]
_STUFF = [category for category in GLYPHS_CATEGORIES if not category["isthing"]]

_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmb10.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)

_MIN_SIZE = 64  # pixels, of `size`
_MAX_SIZE = 1024
_SUPERSAMPLING = 4  # glyphs are drawn this much larger, then averaged down
_MIN_GLYPH_HEIGHT = 18  # pixels
_MAX_GLYPH_HEIGHT = 0.42  # share of `size`
_MIN_OUTLINE_HEIGHT = 26  # pixels; the counters of smaller outlines fill up
_MIN_VISIBLE_SHARE = 0.7  # of a glyph's own pixels
_PLACEMENTS = 40  # tries at placing glyphs in one scene
_MIN_REGION_SHARE = 0.08  # of the picture
_SEGMENT_IDS_PER_IMAGE = 16  # at most 8 glyphs and 4 regions
_MAX_IMAGES = 2**24 // _SEGMENT_IDS_PER_IMAGE - 1  # panoptic ids have 24 bits


class Segment(NamedTuple):
    """One thing or one kind of stuff: an entry of GLYPHS_CATEGORIES and its (H, W) bool mask."""

    category: dict[str, Any]
    mask: np.ndarray


class Scene(NamedTuple):
    """An (H, W, 3) uint8 picture and its segments; the masks do not overlap, things come first."""

    image: np.ndarray
    segments: list[Segment]


def _random_field(
    rng: np.random.Generator, height: int, width: int, wavelength: float
) -> np.ndarray:
    """A smooth random function of the position, (H, W), of mean 0 and variance about 1."""
    waves = 12
    direction = rng.uniform(0, 2 * np.pi, (waves, 1))
    frequency = 2 * np.pi / wavelength * rng.uniform(0.5, 1.5, (waves, 1))
    phase = rng.uniform(0, 2 * np.pi, (waves, 1))
    # A plane wave is a product of one factor along each axis.
    across = np.exp(1j * (frequency * np.cos(direction) * np.arange(width) + phase))
    down = np.exp(1j * frequency * np.sin(direction) * np.arange(height))
    return np.einsum("kh,kw->hw", down, across).real * np.sqrt(2 / waves)


# Of u and v, the rotated coordinates, with a period of about 2 pi. The fourth is the random field.
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": lambda u, v: np.sin(u),
    "checker": lambda u, v: 2 * np.sin(u / 1.5) * np.sin(v / 1.5),
    "dots": lambda u, v: np.cos(u) + np.cos(v) - 0.9,
}


# What a texture's colour tends to, in RGB, relative to grey.
_TINTS = {
    "stripes": (-15, -5, 20),
    "checker": (20, 5, -25),
    "dots": (-15, 20, -5),
    "speckle": (15, -20, 5),
}


def _draw_texture(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """The texture `name`, turned and scaled at random, in muted colours: (H, W, 3) float."""
    period = rng.uniform(7, 15)  # pixels
    if name == "speckle":
        value = _random_field(rng, height, width, 0.8 * period)
    else:
        y, x = np.mgrid[:height, :width] * (2 * np.pi / period)
        angle = rng.uniform(0, 2 * np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        value = _PATTERNS[name](u, v)
    color = rng.uniform(80, 175) + rng.normal(_TINTS[name], 8)
    contrast = rng.uniform(15, 45) + rng.normal(0, 5, 3)
    return color + np.clip(1.5 * value, -1, 1)[..., None] * contrast


def _draw_regions(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, list[Segment]]:
    """An (H, W, 3) float picture of up to four regions of different textures, and its segments."""
    count = rng.integers(2, 5)
    # Each region is what lies nearest to its centre, once a random field has moved the positions.
    wavelength = rng.uniform(30, 60)
    y, x = np.mgrid[:height, :width]
    moved_x = x + 4 * _random_field(rng, height, width, wavelength)
    moved_y = y + 4 * _random_field(rng, height, width, wavelength)
    centre_x = rng.uniform(0, width, (count, 1, 1))
    centre_y = rng.uniform(0, height, (count, 1, 1))
    distance = np.hypot(moved_x - centre_x, moved_y - centre_y)
    share = np.bincount(distance.argmin(0).ravel(), minlength=count) / x.size
    region = distance[share >= _MIN_REGION_SHARE].argmin(0)

    seam = np.zeros((height, width), bool)
    across, down = np.diff(region, axis=1) != 0, np.diff(region, axis=0) != 0
    seam[:, 1:] |= across
    seam[:, :-1] |= across
    seam[1:] |= down
    seam[:-1] |= down

    image = np.empty((height, width, 3))
    segments = []
    for index, kind in enumerate(rng.permutation(len(_STUFF))[: region.max() + 1]):
        mask = region == index
        image[mask] = _draw_texture(rng, _STUFF[kind]["name"], height, width)[mask]
        segments.append(Segment(_STUFF[kind], mask & ~seam))
    image[seam] *= 0.5
    return image, segments


def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at `size` pixels per em, laid out by Pillow itself, whatever else is installed."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _relative_height(path: str, character: str) -> float:
    """The height of `character` in the font at `path`, in ems."""
    _, top, _, bottom = _load_font(path, 1000).getbbox(character)
    return (bottom - top) / 1000


def _draw_character(rng: np.random.Generator, character: str, height: float) -> Image.Image:
    """`character`, about `height` pixels tall, in a random font and style: a mode "L" picture."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", rng.choice(_FONTS))
    font = _load_font(path, round(height * _SUPERSAMPLING / _relative_height(path, character)))
    if height >= _MIN_OUTLINE_HEIGHT and rng.random() < 0.15:
        fill, stroke = 0, round(_SUPERSAMPLING * rng.uniform(1.5, 3))
    else:
        fill, stroke = 255, round(_SUPERSAMPLING * height * rng.uniform(0.015, 0.045))
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    drawing = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawing).text(
        (-left, -top), character, fill, font, stroke_width=stroke, stroke_fill=255
    )
    turned = drawing.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    stretch = rng.uniform(0.85, 1.15)
    size = (turned.width * stretch / _SUPERSAMPLING, turned.height / _SUPERSAMPLING)
    return turned.resize((max(1, round(size[0])), max(1, round(size[1]))), Image.Resampling.BOX)


def _draw_glyphs(rng: np.random.Generator, image: np.ndarray, max_height: float) -> list[Segment]:
    """Paint 3 to 8 glyphs over `image`, in place, and return what is visible of each.

    A glyph that would leave too little of itself or of an earlier one visible is not painted.
    """
    height, width = image.shape[:2]
    count = rng.integers(3, 9)
    glyphs: list[tuple[Segment, int]] = []  # with the number of pixels it would have uncovered
    for _ in range(_PLACEMENTS):
        category = _THINGS[rng.integers(len(_THINGS))]
        glyph_height = np.exp(rng.uniform(np.log(_MIN_GLYPH_HEIGHT), np.log(max_height)))
        drawing = _draw_character(rng, category["name"], glyph_height)
        left = round(rng.uniform(0, width) - drawing.width / 2)
        top = round(rng.uniform(0, height) - drawing.height / 2)
        layer = Image.new("L", (width, height))
        layer.paste(drawing, (left, top))
        coverage = np.asarray(layer)[..., None] / 255

        mask = coverage[..., 0] >= 0.5
        proposal = [(Segment(s.category, s.mask & ~mask), full) for s, full in glyphs]
        proposal.append((Segment(category, mask), np.count_nonzero(np.asarray(drawing) >= 128)))
        visible = [(np.count_nonzero(segment.mask), full) for segment, full in proposal]
        if any(number < _MIN_VISIBLE_SHARE * full for number, full in visible):
            continue
        glyphs = proposal

        # Of a few vivid colours, that which stands out best from what the glyph covers.
        candidates = 255 * hsv_to_rgb(rng.uniform((0, 0.75, 0.7), 1, (rng.integers(2, 5), 3)))
        contrast = np.linalg.norm(image[mask][:, None] - candidates, axis=-1).mean(0)
        image += coverage * (candidates[contrast.argmax()] - image)
        if len(glyphs) == count:
            break
    return [segment for segment, _ in glyphs]


def draw_scene(size: int, seed: int, split: str, index: int) -> Scene:
    """Draw one scene; the same arguments give the same scene, whatever was drawn before.

    Args:
        size: the sides of the picture are 0.9, 1 or 1.1 times this many pixels.
        seed: the seed of the data set.
        split: one of SPLITS.
        index: number of the scene within its split, from 0.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = (round(size * share) for share in rng.choice([0.9, 1.0, 1.1], 2))
    image, stuff = _draw_regions(rng, height, width)
    things = _draw_glyphs(rng, image, _MAX_GLYPH_HEIGHT * size)
    hidden = np.any([thing.mask for thing in things], axis=0)
    stuff = [Segment(category, mask & ~hidden) for category, mask in stuff]

    light = 1 + rng.uniform(0, 0.12) * _random_field(rng, height, width, 2 * size)
    noise = rng.normal(0, rng.uniform(2, 7), image.shape)
    image = np.clip(image * light[..., None] + noise, 0, 255).round().astype(np.uint8)
    return Scene(image, things + [segment for segment in stuff if segment.mask.any()])


def _segment_id(image_id: int, number: int) -> int:
    """An id of 24 bits, unique to segment `number` of picture `image_id`.

    An odd factor permutes the 24-bit numbers: neighbours get colours that can be told apart, and
    ids that need all three channels of a panoptic PNG.
    """
    return (image_id * _SEGMENT_IDS_PER_IMAGE + number) * 0x9E3779 % 2**24


def _write_split(root: Path, split: str, num_images: int, size: int, seed: int) -> None:
    """Write the pictures, label maps and JSON files of one split under `root`."""
    folders = [split, f"panoptic_{split}", f"panoptic_stuff_{split}", f"semantic_{split}"]
    for folder in folders:
        (root / folder).mkdir()
    things = {category["id"]: index for index, category in enumerate(_THINGS)}
    stuff = {category["id"]: index for index, category in enumerate(_STUFF)}

    images, instances, panoptic = [], [], []
    for index in tqdm(range(num_images), desc=f"glyphs {split}", unit="image"):
        image_id = index + 1
        name = f"{image_id:012d}"
        scene = draw_scene(size, seed, split, index)
        height, width = scene.image.shape[:2]
        images.append(
            {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
        )

        ids = np.zeros((height, width), np.uint32)
        stuff_labels = np.full((height, width), IGNORE_LABEL, np.uint8)
        labels = np.full((height, width), IGNORE_LABEL, np.uint8)
        segments_info = []
        for number, (category, mask) in enumerate(scene.segments):
            segment = {
                "id": _segment_id(image_id, number),
                "category_id": category["id"],
                **describe_mask(mask),
            }
            segments_info.append(segment)
            ids[mask] = segment["id"]
            if category["isthing"]:
                stuff_labels[mask] = 0
                labels[mask] = things[category["id"]]
                instances.append(
                    {**segment, "image_id": image_id, "segmentation": encode_mask(mask)}
                )
            else:
                stuff_labels[mask] = 1 + stuff[category["id"]]
                labels[mask] = len(things) + stuff[category["id"]]
        panoptic.append(
            {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments_info}
        )

        Image.fromarray(scene.image).save(
            root / split / f"{name}.jpg", quality=95, subsampling="4:4:4"
        )
        for folder, pixels in zip(folders[1:], (id2rgb(ids), stuff_labels, labels), strict=True):
            Image.fromarray(pixels).save(root / folder / f"{name}.png")

    for task, annotations, categories in (
        ("instances", instances, _THINGS),
        ("panoptic", panoptic, GLYPHS_CATEGORIES),
    ):
        content = {
            "info": {"description": f"Glyphs, a generated data set: {split}, seed {seed}"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        (root / "annotations" / f"{task}_{split}.json").write_text(json.dumps(content))


def _check_arguments(num_train: int, num_val: int, size: int, seed: int) -> None:
    for name, value, low, high in (
        ("the number of training images", num_train, 1, _MAX_IMAGES),
        ("the number of validation images", num_val, 1, _MAX_IMAGES),
        ("the image size", size, _MIN_SIZE, _MAX_SIZE),
        ("the seed", seed, 0, 2**63 - 1),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} must be from {low} to {high}, not {value}")


def generate_glyphs(output: Path, num_train: int, num_val: int, size: int, seed: int) -> None:
    """Write the data set into the folder `output`, or leave it if it is already there.

    The data set is written into a hidden folder beside `output` and moved there when complete, so
    that an interruption leaves no `output`. The same arguments give the same bytes (with the same
    versions of NumPy, Pillow and matplotlib), and a scene does not depend on how many there are.

    Args:
        output: folder that does not exist, or is empty, or holds this very data set.
        num_train: number of training images.
        num_val: number of validation images.
        size: side of the images in pixels; each side is 0.9, 1 or 1.1 times as long.
        seed: any integer that is not negative.

    Raises:
        InputError: a number is out of range; or `output` holds something else, which is never
            overwritten; or nothing can be written beside it.
    """
    _check_arguments(num_train, num_val, size, seed)
    output = output.resolve()
    record = json.dumps(
        {
            "generator": _GENERATOR_VERSION,
            "num_train": num_train,
            "num_val": num_val,
            "size": size,
            "seed": seed,
        }
    )
    if _holds(output, record):
        logger.info("%s already holds this data set; nothing to do", output)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        workspace = tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise InputError(f"cannot write in {output.parent}: {error.strerror}") from error
    with workspace as folder:
        root = Path(folder) / output.name
        (root / "annotations").mkdir(parents=True)
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(root, split, num_images, size, seed)
        (root / RECORD_NAME).write_text(record)
        root.rename(output)


def _holds(output: Path, record: str) -> bool:
    """Whether `output` holds the data set of `record`; InputError if it holds anything else."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise InputError(f"{output} is not a folder")
    found = output / RECORD_NAME
    if found.is_file():
        if found.read_text() == record:
            return True
        raise InputError(
            f"{output} holds another data set, {found.read_text()}, not {record}; "
            "delete it or choose another folder"
        )
    if any(output.iterdir()):
        raise InputError(
            f"{output} is not empty and has no {RECORD_NAME}, so it is not a data set of this "
            "kind and is left alone; choose another folder"
        )
    return False
