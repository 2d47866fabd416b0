import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic_separated
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
    with pytest.raises(InputError, match=r"2 of 6 images cannot be used, .*2\.png.*No such file"):
        check()


def test_annotations_that_are_not_coco(own):
    root, check = own
    (root / "annotations.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"annotations\.json' is not JSON"):
        check()


def test_annotations_without_masks(own):
    root, check = own
    content = json.loads((root / "annotations.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"12 of 12 .* no mask: .* set MODEL\.MASK_ON False"):
        check()


@pytest.fixture
def edit(own):
    """Change the annotations of the dataset, and check it."""
    root, check = own

    def edit(change, *opts: object) -> None:
        content = json.loads((root / "annotations.json").read_text())
        change(content)
        (root / "annotations.json").write_text(json.dumps(content))
        check(*opts)

    return edit


def of_second(**fields):
    """A change of the second annotation; None drops a field."""

    def change(content: dict) -> None:
        annotation = content["annotations"][1]
        annotation.update(fields)
        for field in [field for field, value in fields.items() if value is ...]:
            del annotation[field]

    return change


FAR = [[1e10, 0, 5, 1e10, 0, 0]]
NO_MASK = r"1 of 12 annotations .* bbox \[52, 3, .*0\.png': it has no mask"


@pytest.mark.parametrize(
    "mask, message",
    [
        (..., NO_MASK),
        (None, NO_MASK),
        ([], NO_MASK),
        ({}, NO_MASK),
        ([[]], r"image file .*0\.png': Exception: input type is not supported"),
        ([[1, 2, 3, 4]], r"image file .*0\.png': TypeError"),
        (3, "annotation 2, cannot be read: TypeError"),
        (FAR, r"bbox \[52, 3, .* what reads it dies \(Segmentation fault\)"),
        ([[5, 5, 20, float("nan"), 20, 20]], "coordinates that are not finite"),
        ({"size": [64, 96], "counts": "0"}, "its RLE has fewer pixels than its size"),
        (
            {"size": [10**6, 10**6], "counts": "0"},
            r"\[1000000, 1000000\], its image of \[64, 96\]",
        ),
        ({"size": [96, 64], "counts": "P`0"}, r"is of the size \[96, 64\]"),
        ({"size": [64, 96], "counts": [5, -5, 6144]}, "annotation 2, cannot be read: OverflowErr"),
    ],
)
def test_masks_that_would_stop_training_or_evaluation(edit, mask, message):
    with pytest.raises(InputError, match=message):
        edit(of_second(segmentation=mask))


def test_masks_that_are_not_used_need_not_be_there(edit):
    edit(of_second(segmentation=...), "MODEL.MASK_ON", False)


def test_polygons_without_a_box_that_holds_them_are_tried_by_training_too(edit):
    with pytest.raises(InputError, match=r"dies \(Segmentation fault\)"):
        edit(
            lambda c: [a.update(segmentation=FAR) for a in c["annotations"]],
            *("INPUT.MASK_FORMAT", "polygon", "DATASETS.TEST", "()"),
        )


def test_ground_truth_with_the_id_0_is_sound(edit):
    edit(of_second(id=0))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "nothing to"),
        (lambda c: [a["bbox"].__setitem__(2, 0) for a in c["annotations"]], "nothing to learn"),
        (lambda c: c["annotations"].clear(), "nothing to learn"),
        (lambda c: [a.update(image_id=99) for a in c["annotations"]], "no annotation is of an im"),
        (of_second(image_id="0"), "image ids are of several types: int, str"),
        (lambda c: c["categories"][0].update(name="disc"), "each class needs a name of its own"),
        (lambda c: c["categories"][0].update(name=7), "each class needs a name of its own"),
        (lambda c: c["categories"][0].pop("name"), "KeyError: 'name'"),
    ],
)
def test_annotations_that_would_train_or_score_nothing(edit, change, message):
    with pytest.raises(InputError, match=message):
        edit(change)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    "names, message", [(["disc", "box"], "number 0 is 'box' and 'disc'"), (["box", "ring"], "1 is")]
)
def test_datasets_of_different_classes(own, tmp_path, key, names, message):
    root, check = own
    content = json.loads((root / "annotations.json").read_text())
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    (root / "other.json").write_text(json.dumps(content))
    name = f"other_{tmp_path.name}"
    register_coco_instances(name, {}, str(root / "other.json"), str(root / "images"))
    own_name = f"own_{tmp_path.name}"
    with pytest.raises(InputError, match=f"datasets own_.* and other_.* different .*{message}"):
        check(f"DATASETS.{key}", f"('{own_name}', '{name}')")


def test_images_that_cannot_be_trained_on(own):
    root, check = own
    image = root / "images" / "2.png"
    Image.fromarray(np.full((64, 96), 3000, np.uint16)).save(image)
    with pytest.raises(InputError, match=r"1 of 6 .*2\.png' has values of more than 8 bits"):
        check()
    check("INPUT.VALUE_RANGE", "(0, 4095)")
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(InputError, match=r"1 of 6 .*2\.png' is no regular file"):
        check()


def test_an_image_that_the_resize_leaves_nothing_of(edit, own):
    Image.new("RGB", (5000, 1)).save(own[0] / "images" / "2.png")

    def change(content: dict) -> None:
        content["images"][2].update(width=5000, height=1)
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    with pytest.raises(InputError, match=r"2\.png', 5000 x 1, has no pixel left .*MAX_SIZE_TRAIN"):
        edit(change)


def test_missing_annotation_file_of_a_built_in_dataset(monkeypatch):
    cfg = load_config("", ["DATASETS.TEST", "('coco_2014_val',)"])
    with pytest.raises(
        InputError,
        match=r"dataset coco_2014_val: json_file .*instances_val2014\.json' does not exist; "
        r"the built-in datasets are looked for in '.+' \(DETECTRON2_DATASETS is ",
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


@pytest.fixture
def glyphs(tmp_path, tiny_glyphs):
    """A panoptic dataset, to damage: its folder, and a function that checks it.

    ``check(*opts, form=)`` with form "separated" (all labels) or "stuffonly" (semantic ones).
    """
    root = tmp_path / "glyphs"
    shutil.copytree(tiny_glyphs, root)
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
            r"sem_seg_root '.*panoptic_stuff_train' does not exist.*tools/prepare",
        ),
    ],
)
def test_damaged_label_file(glyphs, damage, message):
    root, check = glyphs
    damage(label_file(root))
    with pytest.raises(InputError, match=message):
        check(*PANOPTIC_FPN, form="separated")


@pytest.mark.parametrize("form", ["separated", "stuffonly"])
def test_damaged_label_file_of_a_semantic_model(glyphs, form):
    root, check = glyphs
    label_file(root).write_bytes(b"")
    with pytest.raises(InputError, match=r"label file '.*000000000002\.png' cannot be read"):
        check(*SEGMENTOR, form=form)


def test_an_unreadable_image_that_training_is_to_skip_needs_no_label_of_its_size(glyphs):
    root, check = glyphs
    (root / "train" / "000000000002.jpg").write_bytes(b"")
    opts = (*SEGMENTOR, "DATASETS.TEST", "()")
    check(*opts, "DATALOADER.SKIP_UNREADABLE", True, form="stuffonly")
    with pytest.raises(InputError, match=r"000000000002\.jpg' cannot be read"):
        check(*opts, form="stuffonly")


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


def of_panoptic(change):
    """A change of the panoptic annotations."""

    def damage(root: Path) -> None:
        path = root / "annotations" / "panoptic_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def of_second_panoptic(**fields):
    return of_panoptic(lambda content: content["annotations"][1].update(fields))


def panoptic_file(root: Path) -> Path:
    return root / "panoptic_train" / "000000000002.png"


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "panoptic_train" / "000000000002.png").unlink(),
            r"1 of 3 .*panoptic file '.*panoptic_train/000000000002\.png' cannot be read",
        ),
        (
            lambda root: shutil.rmtree(root / "panoptic_train"),
            r"panoptic_root '.*panoptic_train' does not exist",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_train.json").unlink(),
            r"panoptic_json '.*panoptic_train\.json' does not exist",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_train.json").write_text("{}"),
            r"panoptic_train\.json' cannot be read: KeyError: 'annotations'",
        ),
        (
            of_panoptic(lambda content: content["annotations"].pop(1)),
            r"1 of 3 .*train/000000000002\.jpg': it has 0 panoptic annotations",
        ),
        (
            of_panoptic(lambda content: content["annotations"][1].pop("segments_info")),
            r"000000000002\.jpg': KeyError: 'segments_info'",
        ),
        (of_second_panoptic(segments_info=None), r"000000000002\.jpg': TypeError"),
        (of_second_panoptic(segments_info=[{"id": "a"}]), r"000000000002\.jpg': "),
        (of_second_panoptic(file_name=3), r"000000000002\.jpg': TypeError"),
        (of_second_panoptic(image_id=99), "annotations of 1 images that are not in it, .* 99"),
        (
            of_panoptic(lambda c: c["annotations"][1]["segments_info"][0].update(category_id=99)),
            r"000000000002\.jpg': KeyError: 99",
        ),
        (of_panoptic(lambda c: c["categories"][0].pop("name")), r"\.jpg': KeyError: 'name'"),
        (
            of_panoptic(lambda c: c["annotations"][1]["segments_info"].pop()),
            r"000000000002\.png' has the segment ids \d+, which its annotation does not list",
        ),
        (
            lambda root: redraw(panoptic_file(root), lambda pixels: pixels[:-1]),
            r"000000000002\.png' has \d+ x \d+ pixels, its image",
        ),
        (
            lambda root: panoptic_file(root).write_bytes(panoptic_file(root).read_bytes()[:-90]),
            r"000000000002\.png' cannot be read",
        ),
    ],
)
def test_damaged_panoptic_files(glyphs, damage, message):
    root, check = glyphs
    damage(root)
    with pytest.raises(InputError, match=message):
        check(*PANOPTIC_FPN, train=False)


def test_panoptic_files_need_not_be_there_where_nothing_is_evaluated(glyphs):
    root, check = glyphs
    shutil.rmtree(root / "panoptic_train")
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


def test_nothing_to_evaluate_on(glyphs):
    _, check = glyphs
    with pytest.raises(InputError, match="DATASETS.TEST is empty: name a dataset to evaluate on"):
        check(*SEGMENTOR, "DATASETS.TEST", "()", train=False)


def test_dataset_that_cannot_evaluate_the_model(glyphs):
    with pytest.raises(InputError, match=r"\(evaluator_type 'sem_seg'\) cannot evaluate"):
        glyphs[1](*MASK_RCNN, form="stuffonly", train=False)
