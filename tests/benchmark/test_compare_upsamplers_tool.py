import csv
import json

from PIL import Image


def test_a_model_with_each_upsampler(run, tiny_config, tmp_path, capsys):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"bbox/AP": 12.25}\n')
    output = tmp_path / "out"
    names = ("Nearest", "LDAAQU", "LDAAQU:reduction=8")
    status = run(
        *("compare_upsamplers.py", "--config-file", tiny_config, "--only", *names),
        *("--size", "64x96", "--repeats", 1, "--threads", 1, "--output", output),
        *("--results", f"LDAAQU={metrics}"),
    )
    assert status == 0
    modules, rows = (
        list(csv.DictReader((output / file).read_text().splitlines()))
        for file in ("upsamplers.csv", "upsamplers_in_model.csv")
    )
    for table in (modules, rows):
        assert [row["upsampler"] for row in table] == list(names)
    assert [row["parameters"] for row in modules] == ["0", "39410", "19970"]
    assert [row["box AP, measured"] for row in rows] == ["", "12.25", ""]
    assert [row["box AP, cited"] for row in rows] == ["37.5", "39.2", ""]

    nearest, lda_aqu, _ = json.loads((output / "upsamplers.json").read_text())["upsamplers"]
    added = lda_aqu["model"]["parameters"] - nearest["model"]["parameters"]
    assert added == 3 * 560  # three steps of 16 channels
    published = "published_topology_parameters"
    assert lda_aqu[published] - nearest[published] == 4 * 560
    flops = lda_aqu["model"]["flops"]
    assert flops["uncounted"] == {}
    assert sum(flops["by_operator"].values()) > sum(
        nearest["model"]["flops"]["by_operator"].values()
    )
    # The published figures are of another model.
    assert "Parameters beside those published" not in capsys.readouterr().out
    with Image.open(output / "upsamplers.png") as picture:
        assert picture.width > 500


def test_a_config_without_the_key_is_one_line(run, tiny_config, tmp_path, capsys):
    status = run(
        *("compare_upsamplers.py", "--config-file", tiny_config, "--only", "Nearest"),
        *("--size", "64x64", "--output", tmp_path / "out"),
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    )
    assert status == 2
    assert "does not use MODEL.FPN.UPSAMPLER" in capsys.readouterr().err
