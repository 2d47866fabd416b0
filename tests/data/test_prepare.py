import json
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from lda_aqu.data import prepare
from lda_aqu.data.glyphs import generate_glyphs
from lda_aqu.data.prepare import prepare_ade20k, prepare_panoptic_stuff
from lda_aqu.errors import InputError
from PIL import Image


def save(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def ade20k(tmp_path) -> Path:
    """ADE20K as downloaded, but small: 2 training and 1 validation image, 5 x 4 pixels."""
    root = tmp_path / "ADEChallengeData2016"
    for split, names in (("training", ("a", "b")), ("validation", ("c",))):
        for number, name in enumerate(names):
            save(root / "images" / split / f"{name}.jpg", np.zeros((4, 5, 3)))
            label = np.arange(20).reshape(4, 5) + 131 * number
            save(root / "annotations" / split / f"{name}.png", label)
    return root


@pytest.fixture
def panoptic(tmp_path) -> Path:
    """A dataset in COCO's panoptic format: 2 images of 6 x 2 pixels, a segment in each column.

    Categories, not in order: stuff 9 and 4, things 7 and 2. Column 0 is void.
    """
    root = tmp_path / "coco"
    categories = [{"id": i, "isthing": int(i in (2, 7)), "name": str(i)} for i in (9, 7, 4, 2)]
    ids = [0, 1, 256, 65536, 65537 + 256, 2**24 - 1]
    channels = np.array([[i % 256, i // 256 % 256, i // 65536] for i in ids])
    kinds = [4, 7, 9, 2, 7]
    images, annotations = [], []
    for image_id, name in ((5, "x"), (3, "y")):
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": 6, "height": 2})
        segments = [{"id": i, "category_id": k} for i, k in zip(ids[1:], kinds, strict=True)]
        segments[1]["iscrowd"] = 1
        annotations.append(
            {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
        )
        save(root / "panoptic_val" / f"{name}.png", np.stack([channels, channels]))
    (root / "annotations").mkdir()
    (root / "annotations" / "panoptic_val.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return root


def edit_json(root: Path, change) -> None:
    path = root / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ADE20K


def test_ade20k_labels_are_shifted_and_zero_is_ignored(ade20k):
    before = contents(ade20k)
    prepare_ade20k(ade20k, ade20k, workers=2)
    made = ade20k / "annotations_detectron2"
    np.testing.assert_array_equal(read(made / "training" / "a.png").ravel(), [255, *range(19)])
    np.testing.assert_array_equal(read(made / "training" / "b.png").ravel(), range(130, 150))
    assert sorted(contents(made)) == ["training/a.png", "training/b.png", "validation/c.png"]
    assert before.items() <= contents(ade20k).items()


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "annotations" / "training" / "b.png").unlink(),
            r"1 of 2 files have no label file, the first is '.*images/training/b\.jpg'",
        ),
        (
            lambda root: (root / "images" / "validation" / "c.jpg").unlink(),
            r"1 of 1 files have no image, the first is '.*annotations/validation/c\.png'",
        ),
        (
            lambda root: save(root / "annotations" / "training" / "b.png", np.full((4, 5), 151)),
            r"training/b\.png' has the values 151; allowed are 0 to 150$",
        ),
        (
            lambda root: save(root / "annotations" / "training" / "b.png", np.zeros((5, 4))),
            r"training/b\.png' has 4 x 5 pixels, its image 5 x 4",
        ),
        (
            lambda root: (root / "images" / "training").rename(root / "images" / "train"),
            r"folder '.*images/training' cannot be read: No such file",
        ),
    ],
)
def test_damaged_ade20k(ade20k, damage, message):
    damage(ade20k)
    with pytest.raises(InputError, match=message):
        prepare_ade20k(ade20k, ade20k, workers=1)


# Stuff labels from panoptic ones


def test_panoptic_stuff(panoptic):
    prepare_panoptic_stuff(panoptic, "val", panoptic, workers=2)
    for name in ("x", "y"):
        label = read(panoptic / "panoptic_stuff_val" / f"{name}.png")
        # Void, then stuff 4, thing 7, stuff 9, thing 2, thing 7; of stuff, 4 comes before 9.
        np.testing.assert_array_equal(label, [[255, 1, 0, 2, 0, 0]] * 2)


def test_panoptic_stuff_of_glyphs_is_what_the_generator_drew(tmp_path):
    root, output = tmp_path / "glyphs", tmp_path / "elsewhere"
    generate_glyphs(root, 3, 1, size=64, seed=0)
    before = contents(root)
    for split in ("train", "val"):
        prepare_panoptic_stuff(root, split, output, workers=1)
        folder = f"panoptic_stuff_{split}"
        files = sorted(path.name for path in (root / folder).iterdir())
        assert sorted(path.name for path in (output / folder).iterdir()) == files
        for file in files:
            np.testing.assert_array_equal(read(output / folder / file), read(root / folder / file))
    assert contents(root) == before


def test_panoptic_stuff_of_coco_follows_detectron2s_categories(shared_data, tmp_path):
    """In reverse: void, and every category's pixels, as counted in the panoptic PNGs."""
    root = tmp_path / "coco"
    source = shared_data / "coco"
    content = json.loads((source / "annotations" / "panoptic_val2017.json").read_text())
    content["annotations"] = content["annotations"][:5]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    (root / "panoptic_val2017").symlink_to(source / "panoptic_val2017")
    prepare_panoptic_stuff(root, "val2017", root, workers=2)

    stuff = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]
    for annotation in content["annotations"]:
        pixels = read(root / "panoptic_stuff_val2017" / annotation["file_name"])
        segments = annotation["segments_info"]
        for label in range(1, 54):
            areas = [s["area"] for s in segments if s["category_id"] == stuff[label - 1]]
            assert np.count_nonzero(pixels == label) == sum(areas)
        things = [s["area"] for s in segments if s["category_id"] not in stuff]
        assert np.count_nonzero(pixels == 0) == sum(things)
        assert np.isin(pixels, [*range(54), 255]).all()


def unlisted(content):
    del content["annotations"][1]["segments_info"][2:4]


def unknown_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 99


def too_much_stuff(content):
    content["categories"] += [{"id": 100 + i, "isthing": 0} for i in range(253)]


@pytest.mark.parametrize(
    "change, message",
    [
        (unlisted, r"y\.png' has the segment ids 65536, 65793, which its annotation does"),
        (
            unknown_category,
            r"panoptic_val\.json': x\.png has segments of the categories 99, not listed",
        ),
        (too_much_stuff, r"panoptic_val\.json' has 255 kinds of stuff; labels of 8 bits allow 254"),
        (lambda content: content["images"].pop(), r"y\.png is of image 3, not listed"),
        (
            lambda content: content["annotations"][0].update(file_name="../../x.png"),
            r"1 of the 2 files .* the first is '.*panoptic_val/\.\./\.\./x\.png'",
        ),
        (
            lambda content: content.pop("categories"),
            "not in COCO's panoptic format: KeyError: 'cat",
        ),
        (lambda content: content["images"][1].update(width=7), r"y\.png' has 6 x 2 .* 7 x 2"),
    ],
)
def test_json_that_does_not_fit(panoptic, change, message):
    edit_json(panoptic, change)
    with pytest.raises(InputError, match=message):
        prepare_panoptic_stuff(panoptic, "val", panoptic, workers=1)


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "panoptic_val" / "x.png").unlink(),
            r"1 of the 2 files of '.*panoptic_val\.json' are missing, .*panoptic_val/x\.png'",
        ),
        (
            lambda root: save(root / "panoptic_val" / "x.png", np.zeros((2, 6))),
            r"x\.png' has the mode L; it must be RGB",
        ),
        (
            lambda root: (root / "panoptic_val" / "x.png").write_bytes(b"no picture"),
            r"panoptic file '.*x\.png' cannot be read",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_val.json").unlink(),
            r"panoptic_val\.json' cannot be read: No such file",
        ),
        (
            lambda root: (root / "annotations" / "panoptic_val.json").write_text('{"images": ['),
            r"panoptic_val\.json' is not JSON",
        ),
    ],
)
def test_damaged_panoptic_files(panoptic, damage, message):
    damage(panoptic)
    with pytest.raises(InputError, match=message):
        prepare_panoptic_stuff(panoptic, "val", panoptic, workers=1)


# Resuming


def test_files_that_exist_are_kept_and_the_rest_made(panoptic, caplog):
    made = panoptic / "panoptic_stuff_val"
    save(made / "x.png", np.full((2, 6), 77))
    with caplog.at_level(logging.INFO):
        prepare_panoptic_stuff(panoptic, "val", panoptic, workers=1)
    assert "1 files to make, 1 exist" in caplog.text
    assert (read(made / "x.png") == 77).all()
    assert read(made / "y.png").max() == 255


def test_a_file_appears_only_when_it_is_complete(panoptic, monkeypatch):
    """An interruption while a file is written leaves none, and the next run makes it."""

    def save_half(self, path, **kwargs):
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    made = panoptic / "panoptic_stuff_val"
    made.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", save_half)
        prepare._write_label(made / "x.png", lambda: np.zeros((2, 6), np.uint8))
    assert list(made.iterdir()) == []
    prepare_panoptic_stuff(panoptic, "val", panoptic, workers=1)
    assert sorted(path.name for path in made.iterdir()) == ["x.png", "y.png"]


def test_what_was_made_before_a_bad_file_is_kept(panoptic):
    (panoptic / "panoptic_val" / "y.png").write_bytes(b"no picture")
    with pytest.raises(InputError):
        prepare_panoptic_stuff(panoptic, "val", panoptic, workers=1)
    assert [path.name for path in (panoptic / "panoptic_stuff_val").iterdir()] == ["x.png"]


def test_output_that_cannot_be_written(panoptic, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match=r"file/panoptic_stuff_val' cannot be made: Not a dir"):
        prepare_panoptic_stuff(panoptic, "val", tmp_path / "file", workers=1)
    with pytest.raises(InputError, match=r"nowhere/x\.png' cannot be written: No such file"):
        prepare._write_label(tmp_path / "nowhere" / "x.png", lambda: np.zeros((2, 6), np.uint8))


# The command lines


def test_ade20k_command(ade20k, tmp_path, run_tool, capsys):
    output = tmp_path / "output"
    assert run_tool("prepare_ade20k.py", "--root", ade20k, "--output", output) == 0
    assert str(output / "annotations_detectron2") in capsys.readouterr().out
    assert (output / "annotations_detectron2" / "validation" / "c.png").exists()
    assert not (ade20k / "annotations_detectron2").exists()


def test_panoptic_command_writes_into_the_datasets_folder(panoptic, monkeypatch, run_tool, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(panoptic.parent))
    assert run_tool("prepare_panoptic_stuff.py", "--splits", "val", "--workers", 1) == 0
    assert str(panoptic / "panoptic_stuff_val") in capsys.readouterr().out
    assert (panoptic / "panoptic_stuff_val" / "x.png").exists()


@pytest.mark.parametrize("tool", ["prepare_ade20k.py", "prepare_panoptic_stuff.py"])
def test_commands_report_a_mistake_in_one_line(tmp_path, run_tool, capsys, tool):
    assert run_tool(tool, "--root", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "none" in error
    assert error.count("\n") == 1


def test_number_of_workers(ade20k):
    with pytest.raises(InputError, match="number of workers must be at least 1, not 0"):
        prepare_ade20k(ade20k, ade20k, workers=0)
