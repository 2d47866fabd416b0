import json

from PIL import Image


def test_a_model_with_each_upsampler(run_tool, tiny_config, tmp_path, capsys):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"bbox/AP": 12.25}\n')
    output = tmp_path / "out"
    names = ["Nearest", "LDAAQU", "LDAAQU:reduction=8"]
    status = run_tool(
        *("compare_upsamplers.py", "--config-file", tiny_config, "--only", *names),
        *("--size", "64x96", "--repeats", 1, "--threads", 1, "--output", output),
        *("--results", f"LDAAQU={metrics}"),
    )
    assert status == 0
    rows = json.loads((output / "upsamplers.json").read_text())["upsamplers"]
    assert [row["upsampler"] for row in rows] == names
    assert [row["parameters"] for row in rows] == [0, 39410, 19970]
    assert [row["published"] for row in rows] == [None, "4: 0.158 M", None]
    assert [row["box AP, measured"] for row in rows] == [None, 12.25, None]
    assert [row["box AP, cited"] for row in rows] == [37.5, 39.2, None]
    assert rows[1]["GFLOPs, model"] > rows[0]["GFLOPs, model"] > rows[1]["GFLOPs"] > 0
    assert all(row[f"ms{where}"] > 0 for row in rows for where in ("", ", model"))
    assert "unknown" not in capsys.readouterr().out
    with Image.open(output / "upsamplers.png") as picture:
        assert picture.width > 500


def test_a_config_without_the_key_is_one_line(run_tool, tiny_config, tmp_path, capsys):
    status = run_tool(
        *("compare_upsamplers.py", "--config-file", tiny_config, "--only", "Nearest"),
        *("--size", "64x64", "--output", tmp_path / "out"),
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    )
    assert status == 2
    assert "does not use MODEL.FPN.UPSAMPLER" in capsys.readouterr().err
