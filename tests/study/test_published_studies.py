"""The studies in docs/study/: what the pages say of them is what their results give."""

import re

import pytest
from lda_aqu.study.report import write_report
from lda_aqu.study.results import read_results
from lda_aqu.study.statistics import compare
from paths import ROOT

FILES = sorted((ROOT / "docs" / "study").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_has_the_table_of_the_results(file, tmp_path, capsys):
    write_report([file], tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = "\n".join(line for line in lines if line.startswith("|"))
    assert table in (ROOT / "docs" / "study.md").read_text()


def test_the_readme_has_the_numbers_of_the_results():
    known = {
        (
            *(arm.upsampler, f"{arm.mean:.2f}", f"{arm.difference:+.2f}"),
            "{:+.2f} to {:+.2f}".format(*arm.interval),
        )
        for file in FILES
        for arm in compare(read_results(file))
        if arm.interval
    }
    rows = re.findall(r"^\| `(\S+)` \|(.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    written = {
        (name, *numbers)
        for name, cells in rows
        for numbers in re.findall(r"([\d.]+) \| (\S+) \((\S+ to \S+)\)", cells)
    }
    assert written and written <= known
