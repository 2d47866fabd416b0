from functools import partial

import pytest


@pytest.fixture
def run(run_tool, tiny_config, tiny_weights, tiny_coco, tmp_path):
    """Run the tool on an image with ``tiny_weights``; return its exit status."""
    return partial(
        run_tool,
        "visualize_sampling.py",
        *("--config-file", tiny_config, "--weights", tiny_weights),
        *("--input", tiny_coco / "images" / "0.png", "--output", tmp_path / "drawn"),
    )


def test_points_offsets_and_maps_are_drawn(run, tmp_path, capsys):
    assert run("--pixels", "95,63", "40,20") == 0
    names = {file.name for file in (tmp_path / "drawn").iterdir()}
    assert names == {"0_points.png", "0_offsets.png", "0_maps.png"}
    printed = capsys.readouterr().out
    # The initial offsets are zero.
    for level in (4, 3, 2):
        assert f"backbone.fpn_upsample{level}: offsets of 0.00 output pixels" in printed


@pytest.mark.parametrize(
    "args, message",
    [
        (["--pixels", "96,3"], "pixel 96,3 is outside"),
        (["--input", "gone.png"], "gone.png"),
        (["--output", __file__], "cannot be written"),
        (["--weights", "gone.pth"], "gone.pth"),
        (["--config-file", "gone.yaml"], "gone.yaml"),
    ],
)
def test_a_mistake_is_one_line(run, args, message, capsys, monkeypatch):
    monkeypatch.setattr("lda_aqu.engine.trained_model.build_model", None)
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("pixel", ["3", "3,x", "1,2,3"])
def test_a_pixel_is_two_numbers(run, pixel, capsys):
    assert run("--pixels", pixel) == 2
    assert f"invalid pixel value: '{pixel}'" in capsys.readouterr().err
