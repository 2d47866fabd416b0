import json
import logging
from pathlib import Path

import numpy as np
import pytest
from lda_aqu.data import glyphs
from lda_aqu.data.glyphs import GLYPHS_CATEGORIES, SPLITS, draw_scene, generate_glyphs
from lda_aqu.errors import InputError
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

COUNTS = {"train": 24, "val": 6}
THING_IDS = [c["id"] for c in GLYPHS_CATEGORIES if c["isthing"]]
STUFF_IDS = [c["id"] for c in GLYPHS_CATEGORIES if not c["isthing"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("datasets") / "glyphs"
    generate_glyphs(output, COUNTS["train"], COUNTS["val"], size=160, seed=3)
    return output


def read_json(root: Path, task: str, split: str) -> dict:
    return json.loads((root / "annotations" / f"{task}_{split}.json").read_text())


def read_ids(root: Path, split: str, annotation: dict) -> np.ndarray:
    png = Image.open(root / f"panoptic_{split}" / annotation["file_name"])
    assert png.mode == "RGB"
    return np.asarray(png).astype(np.int64) @ [1, 256, 256**2]


def panoptic_annotations(root: Path) -> list[tuple[str, dict, np.ndarray]]:
    """(split, panoptic annotation, (H, W) map of segment ids) of every image."""
    return [
        (split, annotation, read_ids(root, split, annotation))
        for split in SPLITS
        for annotation in read_json(root, "panoptic", split)["annotations"]
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What is generated, and that it is always the same


def test_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        generate_glyphs(tmp_path / name, 3, 2, size=96, seed=7)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_scene_does_not_depend_on_how_many_there_are(root, tmp_path):
    generate_glyphs(tmp_path / "fewer", 2, 1, size=160, seed=3)
    few, many = contents(tmp_path / "fewer"), contents(root)
    pictures = [name for name in few if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 3 * 4
    assert all(few[name] == many[name] for name in pictures)


def test_seeds_splits_and_scenes_differ(root, tmp_path):
    generate_glyphs(tmp_path / "other", 2, 2, size=160, seed=4)
    pictures = [data for folder in (root, tmp_path / "other") for data in jpegs(folder)]
    assert len(set(pictures)) == sum(COUNTS.values()) + 4


def jpegs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for split in SPLITS for path in (folder / split).iterdir()]


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_has_every_file(root, split):
    names = [f"{number:012d}" for number in range(1, COUNTS[split] + 1)]
    for folder, suffix in (
        (split, ".jpg"),
        (f"panoptic_{split}", ".png"),
        (f"panoptic_stuff_{split}", ".png"),
        (f"semantic_{split}", ".png"),
    ):
        assert sorted(p.name for p in (root / folder).iterdir()) == [n + suffix for n in names]
    for task in ("instances", "panoptic"):
        images = read_json(root, task, split)["images"]
        assert [image["file_name"] for image in images] == [name + ".jpg" for name in names]
        for image in images:
            picture = Image.open(root / split / image["file_name"])
            assert picture.mode == "RGB"
            assert picture.size == (image["width"], image["height"])


def test_images_are_wide_tall_and_square(root):
    images = read_json(root, "instances", "train")["images"]
    assert {np.sign(image["width"] - image["height"]) for image in images} == {-1, 0, 1}
    assert {image["width"] for image in images} == {144, 160, 176}


def test_categories_are_those_of_the_module(root):
    for split in SPLITS:
        assert read_json(root, "panoptic", split)["categories"] == GLYPHS_CATEGORIES
        things = read_json(root, "instances", split)["categories"]
        assert [category["id"] for category in things] == THING_IDS
    ids = THING_IDS + STUFF_IDS
    assert ids == sorted(set(ids))
    assert list(range(1, len(THING_IDS) + 1)) != THING_IDS, "ids without gaps hide mapping errors"
    for key in ("name", "color"):
        assert len({str(category[key]) for category in GLYPHS_CATEGORIES}) == len(ids)


# The labels agree with one another, and with the pictures


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("split", SPLITS)
def test_instances_are_the_thing_segments(root, split):
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    seen = 0
    for annotation in read_json(root, "panoptic", split)["annotations"]:
        ids = read_ids(root, split, annotation)
        segments = {s["id"]: s for s in annotation["segments_info"]}
        instances = coco.loadAnns(coco.getAnnIds(annotation["image_id"]))
        things = [s["id"] for s in segments.values() if s["category_id"] in THING_IDS]
        assert sorted(instance["id"] for instance in instances) == sorted(things)
        for instance in instances:
            rle = instance["segmentation"]
            assert isinstance(rle["counts"], str)
            assert rle["size"] == list(ids.shape)
            np.testing.assert_array_equal(coco.annToMask(instance), ids == instance["id"])
            for key in ("area", "bbox", "category_id", "iscrowd"):
                assert instance[key] == segments[instance["id"]][key]
            assert instance["area"] == mask_utils.area(rle)
            assert instance["bbox"] == mask_utils.toBbox(rle).tolist()
        seen += len(instances)
    assert seen == len(coco.anns), "an annotation id is used twice"


def test_panoptic_segments_are_described_exactly(root):
    for split, annotation, ids in panoptic_annotations(root):
        segments = annotation["segments_info"]
        assert sorted({s["id"] for s in segments} | {0}) == sorted(set(ids.ravel()) | {0}), split
        stuff = [s["category_id"] for s in segments if s["category_id"] in STUFF_IDS]
        assert len(stuff) == len(set(stuff)), "stuff has one segment of a kind"
        for segment in segments:
            rle = mask_utils.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
            assert segment["area"] == mask_utils.area(rle)
            assert segment["bbox"] == mask_utils.toBbox(rle).tolist()
            assert segment["iscrowd"] == 0


def test_panoptic_ids_need_all_three_channels(root):
    ids = [s["id"] for _, a, _ in panoptic_annotations(root) for s in a["segments_info"]]
    assert sum(i >= 256**2 for i in ids) > 0.9 * len(ids)


def test_semantic_labels_follow_from_the_panoptic_ones(root):
    kinds = set()
    for split, annotation, ids in panoptic_annotations(root):
        stuff_only, semantic = np.full((2, *ids.shape), 255, np.uint8)
        for segment in annotation["segments_info"]:
            here, kind = ids == segment["id"], segment["category_id"]
            semantic[here] = (THING_IDS + STUFF_IDS).index(kind)
            stuff_only[here] = 0 if kind in THING_IDS else STUFF_IDS.index(kind) + 1
            kinds.add(kind)
        for folder, expected in (("panoptic_stuff", stuff_only), ("semantic", semantic)):
            png = Image.open(root / f"{folder}_{split}" / annotation["file_name"])
            assert png.mode == "L"
            np.testing.assert_array_equal(np.asarray(png), expected)
        assert 0 < np.mean(ids == 0) < 0.08, "void is the thin seams and nothing else"
    assert kinds == set(THING_IDS + STUFF_IDS)


def test_masks_lie_where_the_glyphs_are_drawn(root):
    # A glyph is of one colour. A mask that is displaced or mirrored takes in other colours too.
    alike, alike_if_mirrored = [], []
    for split, annotation, ids in panoptic_annotations(root):
        picture = root / split / annotation["file_name"].replace(".png", ".jpg")
        image = np.asarray(Image.open(picture)).astype(float)
        for segment in annotation["segments_info"]:
            if segment["category_id"] in THING_IDS:
                mask = ids == segment["id"]
                for pixels, found in (
                    (image[mask], alike),
                    (image[:, ::-1][mask], alike_if_mirrored),
                ):
                    distance = np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1)
                    found.append(np.mean(distance < 50))
    assert np.mean(alike) > 0.8
    assert np.mean(alike_if_mirrored) < np.mean(alike) - 0.1


def test_detectron2_reads_it(root):
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.coco import load_coco_json, load_sem_seg
    from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json, merge_to_panoptic

    annotations = root / "annotations"
    instances = load_coco_json(annotations / "instances_val.json", root / "val", "glyphs_test")
    stuff = load_sem_seg(root / "panoptic_stuff_val", root / "val")
    merged = merge_to_panoptic(instances, stuff)
    panoptic = load_coco_panoptic_json(
        annotations / "panoptic_val.json",
        root / "val",
        root / "panoptic_val",
        {
            "thing_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(THING_IDS)},
            "stuff_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(STUFF_IDS)},
        },
    )
    assert len(merged) == len(panoptic) == COUNTS["val"]
    for entry, other in zip(merged, panoptic, strict=True):
        assert Path(entry["sem_seg_file_name"]).stem == Path(other["pan_seg_file_name"]).stem
        assert entry["file_name"] == other["file_name"]
        things = [s["category_id"] for s in other["segments_info"] if s["isthing"]]
        assert [a["category_id"] for a in entry["annotations"]] == things


# The scenes are varied, and no harder than they should be


def test_glyphs_are_few_visible_and_of_many_sizes(root):
    heights = []
    for split in SPLITS:
        data = read_json(root, "instances", split)
        images = {image["id"]: image for image in data["images"]}
        for annotation in data["annotations"]:
            assert annotation["area"] >= 30
            x, y, width, height = annotation["bbox"]
            image = images[annotation["image_id"]]
            if x and y and x + width < image["width"] and y + height < image["height"]:
                heights.append(height)
        number = np.bincount([a["image_id"] for a in data["annotations"]])[1:]
        assert number.min() >= 3
        assert number.max() <= 8
    assert min(heights) >= 8
    assert np.percentile(heights, 97) / np.percentile(heights, 3) > 2.5


def test_what_crowding_leaves_of_a_glyph_is_still_to_be_seen():
    for index in range(60):
        scene = draw_scene(size=64, seed=0, split="train", index=index)
        for category, mask in scene.segments:
            assert np.count_nonzero(mask) >= (30 if category["isthing"] else 1)


def test_some_glyphs_hide_others(root):
    touching = 0
    for _, annotation, ids in panoptic_annotations(root):
        kinds = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        things = np.where(np.isin(ids, [i for i, k in kinds.items() if k in THING_IDS]), ids, 0)
        for a, b in ((things[1:], things[:-1]), (things[:, 1:], things[:, :-1])):
            if np.any((a != b) & (a > 0) & (b > 0)):
                touching += 1
                break
    assert touching >= 0.3 * sum(COUNTS.values())


# The folder


def test_identical_data_set_is_left_as_it_is(tmp_path, caplog):
    output = tmp_path / "glyphs"
    generate_glyphs(output, 1, 1, size=64, seed=0)
    picture = output / "train" / "000000000001.jpg"
    picture.write_bytes(b"touched")
    with caplog.at_level(logging.INFO):
        generate_glyphs(output, 1, 1, size=64, seed=0)
    assert picture.read_bytes() == b"touched"
    assert "already" in caplog.text


def test_other_data_set_is_not_overwritten(tmp_path):
    output = tmp_path / "glyphs"
    generate_glyphs(output, 1, 1, size=64, seed=0)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r'another data set.*"seed": 0.*"seed": 1'):
        generate_glyphs(output, 1, 1, size=64, seed=1)
    assert contents(tmp_path) == before


def test_foreign_folder_and_file_are_not_overwritten(tmp_path):
    (tmp_path / "folder" / "train").mkdir(parents=True)
    (tmp_path / "file").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"is not empty and has no glyphs\.json"):
        generate_glyphs(tmp_path / "folder", 1, 1, size=64, seed=0)
    with pytest.raises(InputError, match="is not a folder"):
        generate_glyphs(tmp_path / "file", 1, 1, size=64, seed=0)
    with pytest.raises(InputError, match="cannot write in"):
        generate_glyphs(tmp_path / "file" / "glyphs", 1, 1, size=64, seed=0)
    assert contents(tmp_path) == before


def test_empty_and_new_folders_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "new" / "folder"):
        generate_glyphs(output, 1, 1, size=64, seed=0)
        assert (output / "annotations" / "instances_val.json").is_file()


def test_interrupted_generation_leaves_nothing_and_is_redone(tmp_path, monkeypatch):
    generate_glyphs(tmp_path / "expected", 2, 2, size=64, seed=0)
    draw = glyphs.draw_scene

    def interrupt(size, seed, split, index):
        if (split, index) == ("val", 1):
            raise KeyboardInterrupt
        return draw(size, seed, split, index)

    output = tmp_path / "datasets" / "glyphs"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(glyphs, "draw_scene", interrupt)
        generate_glyphs(output, 2, 2, size=64, seed=0)
    assert list(output.parent.iterdir()) == []
    generate_glyphs(output, 2, 2, size=64, seed=0)
    assert contents(output) == contents(tmp_path / "expected")
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": 0}, "training images must be from 1 to .*, not 0"),
        ({"num_val": -1}, "validation images must be from 1 to .*, not -1"),
        ({"num_train": 2**20}, "training images must be from 1 to 1048575, not 1048576"),
        ({"size": 63}, "image size must be from 64 to 1024, not 63"),
        ({"size": 1025}, "image size must be from 64 to 1024, not 1025"),
        ({"seed": -1}, "seed must be from 0 to .*, not -1"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"num_train": 1, "num_val": 1, "size": 64, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        generate_glyphs(tmp_path / "glyphs", **arguments)
    assert list(tmp_path.iterdir()) == []


# The command line


def test_command_writes_into_the_datasets_folder(tmp_path, monkeypatch, run_tool, capsys):
    """And says where."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run_tool("generate_glyphs.py", "--train", 2, "--val", 1, "--size", 64) == 0
    assert str(tmp_path / "glyphs") in capsys.readouterr().out
    assert len(list((tmp_path / "glyphs" / "train").iterdir())) == 2


def test_command_reports_a_mistake_in_one_line(tmp_path, run_tool, capsys):
    assert run_tool("generate_glyphs.py", "--output", tmp_path / "glyphs", "--size", 7) == 2
    assert capsys.readouterr().err == "error: the image size must be from 64 to 1024, not 7\n"
