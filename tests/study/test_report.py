import json
import re

import numpy as np
import pytest
from lda_aqu.errors import InputError
from lda_aqu.study.report import summary, write_report
from lda_aqu.study.results import provenance
from PIL import Image
from results import result


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    results = [
        result(name, seed, metrics={"bbox/AP": rng.normal(40, 1), "segm/AP": rng.normal(30, 1)})
        for name, seeds in (("LDAAQU:reduction=16", 6), ("CARAFE", 2), ("Nearest", 10))
        for seed in range(1, seeds + 1)
    ]
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(results))
    return path


def rows(page: str) -> list[list[str]]:
    lines = re.findall(r"^\| (.+) \|$", page, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_tables_are_what_the_results_say(file, tmp_path, capsys):
    write_report([file], tmp_path / "out")
    values: dict = {}
    for r in json.loads(file.read_text()):
        for metric in ("bbox/AP", "segm/AP"):
            values.setdefault((metric, r["upsampler"]), {})[r["seed"]] = r["metrics"][metric]
    expected = []
    for metric, name in (("bbox/AP", "box AP"), ("segm/AP", "mask AP")):
        base = values[metric, "Nearest"]
        for upsampler in ("Nearest", "LDAAQU:reduction=16", "CARAFE"):
            own = values[metric, upsampler]
            row = [name, upsampler, str(len(own)), f"{np.mean([*own.values()]):.2f}"]
            row.append(f"{np.std([*own.values()], ddof=1):.2f}")
            d = np.array([own[seed] - base[seed] for seed in own])
            if upsampler == "Nearest":
                row += ["-", "-", "-"]
            else:
                half = 2.570582 * np.std(d, ddof=1) / len(d) ** 0.5  # 5 degrees of freedom
                interval = f"{d.mean() - half:+.2f} to {d.mean() + half:+.2f}"
                row += [f"{d.mean():+.2f}", interval if len(d) == 6 else "-", str(len(d))]
            expected.append(row)
    page = (tmp_path / "out" / "report.md").read_text()
    assert [row[:8] for row in rows(page) if row[0] in ("box AP", "mask AP")] == expected
    note = "fewer than 3 pairs, hence no interval and no p: CARAFE"
    assert note in page and note in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "report.png") as picture:
        assert picture.width > 500


def test_the_summary_has_the_means(file):
    found = summary(file)
    results = [r for r in json.loads(file.read_text()) if r["upsampler"] == "CARAFE"]
    mean = np.mean([r["metrics"]["segm/AP"] for r in results])
    assert found["CARAFE"]["mask AP"] == pytest.approx(mean)


def test_several_studies_and_one_without_pairs(file, tmp_path):
    other = tmp_path / "other.json"
    lost = result("Nearest", 1, metrics={"bbox/AP": None, "sem_seg/mIoU": 7.0})
    other.write_text(json.dumps([lost]))
    write_report([file, other], tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == ["cells", "other"]
    assert "no number, and left out: Nearest seed 1 bbox/AP" in page


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read"),
        ("[]", "must be a list of objects with"),
        ('[{"seed": 1}]', "must be a list of objects with"),
        (json.dumps([result("A", 1), result("A", 1)]), "2 of A with seed 1"),
        (json.dumps([result("A", 1), result("A", 2, baseline="A")]), "are of several studies"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        write_report([path], tmp_path)


@pytest.mark.parametrize(
    "path", [("device",), ("config", "compared"), ("options",)], ids=lambda path: path[-1]
)
def test_results_without_a_field(tmp_path, path):
    incomplete = result("Nearest", 1)
    *parents, field = path
    target = incomplete
    for parent in parents:
        target = target[parent]
    del target[field]
    (tmp_path / "results.json").write_text(json.dumps([incomplete]))
    with pytest.raises(InputError, match="must be a list of objects with"):
        write_report([tmp_path / "results.json"], tmp_path / "out")


def test_there_need_be_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance("cpu", tmp_path)["commit"] is None
