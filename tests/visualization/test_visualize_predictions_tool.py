import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from lda_aqu.engine import load_config
from PIL import Image


@pytest.fixture
def run(run_tool):
    """Run the tool as a command; return its exit status."""
    return partial(run_tool, "visualize_predictions.py")


def width(file: Path) -> int:
    with Image.open(file) as picture:
        return picture.width


def test_a_folder_is_drawn_and_a_file_that_cannot_be_read_is_named(
    run, tiny_config, tiny_weights, tiny_coco, tmp_path, capsys
):
    images = tmp_path / "images"
    shutil.copytree(tiny_coco / "images", images)
    broken, thin, deep = (images / f"{name}.png" for name in ("broken", "thin", "deep"))
    broken.write_bytes(b"not an image")
    Image.new("RGB", (5000, 1)).save(thin)
    Image.fromarray(np.full((40, 60), 3000, np.uint16)).save(deep)
    output = tmp_path / "drawn"
    status = run(
        *("--config-file", tiny_config, "--weights", tiny_weights, "--input", images),
        *("--output", output, "--score-threshold", "0.1", "MODEL.MASK_ON", "False"),
    )
    assert status == 1
    expected = {"contact_sheet.png", *(file.name for file in (tiny_coco / "images").iterdir())}
    assert {file.name for file in output.iterdir()} == expected
    printed = capsys.readouterr().out
    assert f"Pictures in {output}: 6 drawn, 3 failed" in printed
    assert f"Could not be drawn: {broken}, {deep}, {thin}" in printed


def test_an_image_of_16_bits_is_drawn_as_its_twin_of_8_bits(
    run, tiny_config, tiny_weights, tmp_path
):
    images, output = tmp_path / "images", tmp_path / "drawn"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    Image.fromarray(pixels * np.uint16(257)).save(images / "deep.png")
    Image.fromarray(pixels).save(images / "twin.png")
    status = run(
        *("--config-file", tiny_config, "--weights", tiny_weights, "--input", images),
        *("--output", output, "--score-threshold", "0", "INPUT.VALUE_RANGE", "[0, 65535]"),
    )
    assert status == 0
    deep, twin = (np.asarray(Image.open(output / f"{name}.png")) for name in ("deep", "twin"))
    assert np.array_equal(deep, twin)


def test_a_dataset_is_drawn_beside_its_ground_truth(
    run, tiny_config, tiny_weights, tiny_coco, tmp_path
):
    both, alone = tmp_path / "both", tmp_path / "alone"
    model = ("--config-file", tiny_config, "--weights", tiny_weights, "--limit", 1)
    assert run(*model, "--dataset", "tiny", "--output", both) == 0
    assert run(*model, "--input", tiny_coco / "images" / "0.png", "--output", alone) == 0
    assert {file.name for file in both.iterdir()} == {"contact_sheet.png", "0.png"}
    assert width(both / "0.png") > 2 * width(alone / "0.png")


@pytest.mark.parametrize("has_config", [True, False])
def test_saved_results_are_drawn_without_a_model(
    run, tiny_config, tmp_path, capsys, monkeypatch, has_config
):
    monkeypatch.setattr("lda_aqu.engine.trained_model.build_model", None)
    results = tmp_path / "coco_instances_results.json"
    detection = {"image_id": 4, "category_id": 7, "score": 0.9, "bbox": [3, 4, 20, 10]}
    results.write_text(json.dumps([detection]))
    output = tmp_path / "drawn"
    load_config(str(tiny_config), [])  # registers the dataset
    config = ("--config-file", tiny_config) if has_config else ()
    assert run(*config, "--dataset", "tiny", "--output", output, "--results", results) == 0
    assert "6 drawn, 0 failed" in capsys.readouterr().out
    assert len(list(output.iterdir())) == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "gone"], "no such image file or folder: gone"),
        (["--dataset", "tinny"], "tiny"),
        (["--dataset", "tiny", "--output", __file__], "cannot be written"),
        (["--dataset", "tinny", "--weights", "gone.pth"], "gone.pth"),
        (["--dataset", "tiny", "MODEL.ROI_HEADS.NUM_CLASSES", "3"], "has 2 classes"),
        (["--dataset", "tiny", "MODEL.WIEGHTS", "x"], "MODEL.WIEGHTS"),
    ],
)
def test_a_mistake_is_one_line_and_no_model_is_built(
    run, args, message, tiny_config, tiny_weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("lda_aqu.engine.trained_model.build_model", None)
    model = ["--config-file", tiny_config, "--weights", tiny_weights]
    given = [*model, "--output", tmp_path / "drawn"]
    assert run(*given, *args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "args",
    [
        ["--config-file", "x.yaml"],
        ["--config-file", "x.yaml", "--input", "a.png", "--dataset", "name"],
        ["--dataset", "name"],
        ["--results", "x.json", "--input", "a.png"],
        ["--results", "x.json", "--dataset", "name", "--weights", "x.pth"],
        ["--config-file", "x.yaml", "--dataset", "name", "--score-threshold", "1.1"],
        ["--config-file", "x.yaml", "--dataset", "name", "--score-threshold", "nan"],
        ["--config-file", "x.yaml", "--dataset", "name", "--limit", "0"],
    ],
)
def test_options_that_do_not_go_together_are_refused(run, args, tmp_path, capsys):
    assert run("--output", tmp_path, *args) == 2
    assert "visualize_predictions.py: error: " in capsys.readouterr().err
