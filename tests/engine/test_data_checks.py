import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from lda_aqu.data.glyphs import generate_glyphs
from lda_aqu.engine import (
    check_datasets,
    load_config,
)
from lda_aqu.errors import InputError
from PIL import Image


@pytest.fixture
def own(tmp_path, tiny_coco):
    """A dataset of one's own, to damage: returns its folder and a function that checks it."""
    root = tmp_path / "own"
    shutil.copytree(tiny_coco, root)

    def check(*opts: object, name: str = f"own_{tmp_path.name}") -> None:
        config = tmp_path / "own.yaml"
        config.write_text(
            f"DATASETS: {{TRAIN: [{name}], TEST: [{name}], COCO_FORMAT: {{{name}: "
            f"{{ANNOTATIONS: {root}/annotations.json, IMAGES: {root}/images}}}}}}\n"
            "MODEL: {MASK_ON: True, ROI_HEADS: {NUM_CLASSES: 2}}\n"
            "INPUT: {MASK_FORMAT: bitmask}"
        )
        check_datasets(load_config(str(config), [str(opt) for opt in opts]), train=True)

    return root, check


def test_sound_dataset(own):
    own[1]()


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", 80],
            "2 classes.*box, disc.*set MODEL.ROI_HEADS.NUM_CLASSES 2",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "MODEL.RETINANET.NUM_CLASSES is 80: set MODEL.RETINANET.NUM_CLASSES 2",
        ),
        (["INPUT.MASK_FORMAT", "polygon"], "set INPUT.MASK_FORMAT bitmask"),
        (["DATASETS.TEST", "('bccd_vall',)"], "DATASETS.TEST: no dataset 'bccd_vall'.*bccd_val"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    ],
)
def test_config_that_does_not_fit(own, opts, message):
    with pytest.raises(InputError, match=message):
        own[1](*opts)


def test_missing_images_are_counted_and_named(own):
    root, check = own
    (root / "images" / "2.png").unlink()
    (root / "images" / "4.png").unlink()
    with pytest.raises(InputError, match=r"2 of 6 image files are missing.*2\.png"):
        check()


def test_annotations_that_are_not_coco(own):
    root, check = own
    (root / "annotations.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"annotations\.json' cannot be read"):
        check()


def test_annotations_without_masks(own):
    root, check = own
    content = json.loads((root / "annotations.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has no masks: set MODEL\.MASK_ON False"):
        check()


def test_missing_annotation_file_of_a_built_in_dataset(monkeypatch):
    cfg = load_config("", ["DATASETS.TEST", "('coco_2014_val',)"])
    with pytest.raises(
        InputError, match=r"dataset coco_2014_val: annotation file .* does not exist"
    ):
        check_datasets(cfg, train=False)


PANOPTIC_FPN = [
    *("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 5, "INPUT.MASK_FORMAT", "bitmask"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
]


SEGMENTOR = [
    *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
]


MASK_RCNN = [
    "MODEL.MASK_ON",
    True,
    "MODEL.ROI_HEADS.NUM_CLASSES",
    5,
    "INPUT.MASK_FORMAT",
    "bitmask",
]


@pytest.fixture(scope="module")
def sound_glyphs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "glyphs"
    generate_glyphs(root, 3, 1, size=64, seed=0)
    return root


@pytest.fixture
def glyphs(tmp_path, sound_glyphs):
    """A panoptic dataset, to damage: its folder, and a function that checks it.

    ``check(*opts, form=)`` with form "separated" (all labels) or "stuffonly" (semantic ones).
    """
    root = tmp_path / "glyphs"
    shutil.copytree(sound_glyphs, root)
    metadata = MetadataCatalog.get("glyphs_panoptic_train").as_dict()
    keys = ("classes", "colors", "dataset_id_to_contiguous_id")
    register_coco_panoptic_separated(
        tmp_path.name,
        {f"{kind}_{key}": metadata[f"{kind}_{key}"] for kind in ("thing", "stuff") for key in keys},
        str(root / "train"),
        str(root / "panoptic_train"),
        str(root / "annotations" / "panoptic_train.json"),
        str(root / "panoptic_stuff_train"),
        str(root / "annotations" / "instances_train.json"),
    )

    def check(*opts: object, form: str = "separated", train: bool = True) -> None:
        name = f"('{tmp_path.name}_{form}',)"
        opts = ["DATASETS.TRAIN", name, "DATASETS.TEST", name, *map(str, opts)]
        check_datasets(load_config("", opts), train=train)

    return root, check


def label_file(root: Path, number: int = 2) -> Path:
    return root / "panoptic_stuff_train" / f"{number:012d}.png"


def redraw(path: Path, change) -> None:
    with Image.open(path) as image:
        pixels = np.array(image)
    Image.fromarray(change(pixels)).save(path)


def paint(pixels: np.ndarray) -> np.ndarray:
    pixels[:2, :3] = [6, 9, 254]
    return pixels


def test_sound_panoptic_dataset_for_every_architecture(glyphs):
    _, check = glyphs
    for opts, form in (
        (PANOPTIC_FPN, "separated"),
        (MASK_RCNN, "separated"),
        (SEGMENTOR, "separated"),
        (SEGMENTOR, "stuffonly"),
    ):
        check(*opts, form=form)


@pytest.mark.parametrize(
    "opts, form", [(PANOPTIC_FPN, "separated"), (SEGMENTOR, "separated"), (SEGMENTOR, "stuffonly")]
)
@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda file: redraw(file, paint),
            r"1 of 3 .*/000000000002\.png' has the values 6, 9, 254; allowed are 0 to 4,",
        ),
        (
            lambda file: redraw(file, lambda pixels: pixels[:-1, :-2]),
            r"label file '.*000000000002\.png' has \d+ x \d+ pixels, its image \d+ x \d+",
        ),
        (
            lambda file: redraw(file, lambda pixels: np.stack([pixels] * 3, -1)),
            r"000000000002\.png' has the mode RGB; it must be L",
        ),
        (lambda file: file.write_bytes(b""), r"label file '.*000000000002\.png' cannot be read"),
        (
            lambda file: shutil.rmtree(file.parent),
            r"folder of semantic labels '.*panoptic_stuff_train' does not exist.*see tools/prepare",
        ),
    ],
)
def test_damaged_label_file(glyphs, opts, form, damage, message):
    root, check = glyphs
    damage(label_file(root))
    with pytest.raises(InputError, match=message):
        check(*opts, form=form)


@pytest.mark.parametrize("form", ["separated", "stuffonly"])
def test_missing_label_file_is_named(glyphs, form):
    root, check = glyphs
    label_file(root).unlink()
    with pytest.raises(InputError, match=r"panoptic_stuff_train/000000000002\.png'"):
        check(*SEGMENTOR, form=form)


@pytest.mark.parametrize("form", ["separated", "stuffonly"])
def test_label_file_of_another_name_is_not_taken_for_the_missing_one(glyphs, form):
    """There are as many labels as images, which Detectron2 would then pair in order."""
    root, check = glyphs
    label_file(root).rename(label_file(root, 7))
    with pytest.raises(InputError, match=r"missing in .*stuff_train/000000000002\.png'"):
        check(*SEGMENTOR, form=form)


def test_label_file_without_image(glyphs):
    root, check = glyphs
    shutil.copy(label_file(root), label_file(root, 7))
    with pytest.raises(InputError, match=r"1 of 4 files are missing in .*train/000000000007\.jpg'"):
        check(*SEGMENTOR, form="stuffonly")


def test_images_beyond_those_of_the_annotation_file_need_no_label(glyphs):
    root, check = glyphs
    shutil.copy(root / "train" / "000000000002.jpg", root / "train" / "000000000009.jpg")
    check(*PANOPTIC_FPN)
    with pytest.raises(InputError, match=r"1 of 4 files are missing in .*/000000000009\.png'"):
        check(*SEGMENTOR, form="stuffonly")


def test_mask_rcnn_reads_no_semantic_or_panoptic_labels(glyphs):
    root, check = glyphs
    redraw(label_file(root), paint)
    shutil.rmtree(root / "panoptic_train")
    (root / "annotations" / "panoptic_train.json").unlink()
    check(*MASK_RCNN)


def test_segmentor_reads_no_instances(glyphs):
    _, check = glyphs
    check(*SEGMENTOR, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.MASK_ON", True)


def drop_annotation(root: Path) -> None:
    path = root / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    del content["annotations"][1]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "panoptic_train" / "000000000002.png").unlink(),
            r"1 of 3 panoptic label files are missing.*panoptic_train/000000000002\.png'",
        ),
        (
            lambda root: shutil.rmtree(root / "panoptic_train"),
            r"folder of panoptic labels '.*panoptic_train' does not exist",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_train.json").unlink(),
            r"panoptic annotation file '.*panoptic_train\.json' does not exist",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_train.json").write_text("{}"),
            r"panoptic_train\.json' cannot be read: KeyError: 'annotations'",
        ),
        (
            drop_annotation,
            r"panoptic_train\.json' has no annotation of 1 of 3 images.*train/000000000002\.jpg'",
        ),
    ],
)
def test_damaged_panoptic_files_matter_where_they_are_evaluated(glyphs, damage, message):
    root, check = glyphs
    damage(root)
    with pytest.raises(InputError, match=message):
        check(*PANOPTIC_FPN)
    check(*PANOPTIC_FPN, "DATASETS.TEST", "()")


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            [*PANOPTIC_FPN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54],
            r"5 classes \(things, stripes.*set MODEL\.SEM_SEG_HEAD\.NUM_CLASSES 5",
        ),
        (
            [*PANOPTIC_FPN, "MODEL.ROI_HEADS.NUM_CLASSES", 80],
            r"5 classes \(A, K.*set MODEL\.ROI_HEADS\.NUM_CLASSES 5",
        ),
        (
            [*SEGMENTOR, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254],
            r"labels with 255 what is to be ignored, but .*IGNORE_VALUE is 254: set it 255",
        ),
    ],
)
def test_config_that_does_not_fit_semantic_labels(glyphs, opts, message):
    with pytest.raises(InputError, match=message):
        glyphs[1](*opts)


def test_dataset_without_the_labels_of_the_model(glyphs, own):
    with pytest.raises(InputError, match="has no instances, which GeneralizedRCNN needs"):
        glyphs[1](*MASK_RCNN, form="stuffonly")
    for architecture in ("SemanticSegmentor", "PanopticFPN"):
        with pytest.raises(InputError, match=f"no semantic labels, which {architecture} needs"):
            own[1]("MODEL.META_ARCHITECTURE", architecture)


def test_dataset_that_cannot_evaluate_the_model(glyphs):
    with pytest.raises(InputError, match=r"\(evaluator_type 'sem_seg'\) cannot evaluate"):
        glyphs[1](*MASK_RCNN, form="stuffonly", train=False)
