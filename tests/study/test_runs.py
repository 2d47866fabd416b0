"""The runs of a study: a script that takes their place, except in the tests of train_net.py."""

import json
import multiprocessing
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lda_aqu.errors import InputError
from lda_aqu.study.plan import Study, parse_seeds
from lda_aqu.study.runner import run_all
from paths import ROOT

FAKE = Path(__file__).with_name("fake_train_net.py")
TOOL = ROOT / "tools" / "study.py"


@pytest.fixture
def study(tiny_config, tmp_path):
    def make(*upsamplers: str, **changes) -> Study:
        fields = {
            **{"opts": ("SOLVER.MAX_ITER", "40"), "keys": ("MODEL.FPN.UPSAMPLER",)},
            "upsamplers": upsamplers or ("LDAAQU:reduction=8", "Nearest"),
            **{"baseline": "Nearest", "output": tmp_path / "study"},
        }
        return Study(str(tiny_config), **fields | changes)

    return make


def run(study: Study, seeds: str = "1-2", jobs: int = 1) -> list[Path]:
    return run_all(study, study.prepare(), parse_seeds(seeds), FAKE, jobs, threads=1)


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def calls(study: Study) -> list[tuple[str, str, bool]]:
    """Upsampler, seed and whether it was resumed, of the runs that were started."""
    lines = map(json.loads, (study.output / "calls").read_text().splitlines())
    return [
        (c[c.index("MODEL.FPN.UPSAMPLER") + 1], c[c.index("SEED") + 1], "--resume" in c)
        for c in lines
    ]


def test_runs_in_pairs_and_once(study):
    first = study()
    assert run(first) == []
    order = [("Nearest", "1"), ("LDAAQU", "1"), ("Nearest", "2"), ("LDAAQU", "2")]
    assert calls(first) == [(*names, False) for names in order]
    results = read(first.output / "results.json")
    assert [(r["upsampler"], r["seed"]) for r in results] == [
        *(("LDAAQU:reduction=8", seed) for seed in (1, 2)),
        *(("Nearest", seed) for seed in (1, 2)),
    ]
    result = results[1]
    assert result["options"] == {"reduction": 8} and result["baseline"] == "Nearest"
    assert result["metrics"] == {"bbox/AP": 2 + len("LDAAQU_reduction=8"), "segm/AP": None}
    assert result["seconds"] == 20 and result["peak_memory"] > 1
    assert result["versions"]["torch"] and result["device"] and "commit" in result
    assert result["config"]["options"] == ["SOLVER.MAX_ITER", "40"]

    run(study("Nearest", "CARAFE"), "2-3", jobs=2)  # more of the same study
    assert sorted(calls(first)[4:]) == [
        *(("CARAFE", seed, False) for seed in "23"),
        *[("Nearest", "3", False)],
    ]
    assert len(read(first.output / "results.json")) == 7


def test_another_machine_goes_on_from_the_results(study, tmp_path):
    run(study(), "1-2")
    other = study("CARAFE", "Nearest", baseline="CARAFE", output=tmp_path / "other")
    other.output.mkdir()
    shutil.copy(tmp_path / "study" / "results.json", other.output)
    run(other, "2-3")
    assert calls(other) == [("CARAFE", "2", False), ("CARAFE", "3", False), ("Nearest", "3", False)]
    assert {result["baseline"] for result in read(other.output / "results.json")} == {"CARAFE"}
    changed = study(output=other.output, opts=("SOLVER.MAX_ITER", "80"))
    with pytest.raises(InputError, match="options SOLVER.MAX_ITER 40, not SOLVER.MAX_ITER 80"):
        changed.prepare()


def test_goes_on_from_another_working_directory(study, tmp_path, monkeypatch):
    run(study(), "1")
    monkeypatch.chdir(tmp_path)
    run(study(), "1-2")
    results = read(tmp_path / "study" / "results.json")
    assert len(results) == 4 and len({result["config"]["file"] for result in results}) == 1


def test_results_of_another_config_file(study, tmp_path):
    run(study("Nearest"), "1")
    results = tmp_path / "study" / "results.json"
    before = results.read_text().replace('"file": "', '"file": "another/')
    results.write_text(before)
    with pytest.raises(InputError, match="has results of the config 'another/"):
        run(study("Nearest"), "2")
    assert results.read_text() == before and len(calls(study())) == 1


def test_a_run_that_fails_is_named_and_the_others_go_on(study, capsys):
    some = study("Nearest", "CARAFE", "LDAAQU")
    some.output.mkdir()
    (some.output / "broken").write_text("CARAFE")
    logs = run(some)
    assert logs == [some.output / "CARAFE" / f"seed_{seed}" / "console.log" for seed in (1, 2)]
    assert "CARAFE with seed 2 failed (1): error: it is broken" in capsys.readouterr().err
    assert len(read(some.output / "results.json")) == 4
    (some.output / "broken").unlink()
    assert run(some) == []
    assert len(read(some.output / "results.json")) == 6


def test_an_interrupted_study_ends_its_runs_and_goes_on(study, tmp_path):
    whole = study(output=tmp_path / "whole")
    run(whole)
    cut = study()
    cut.output.mkdir()
    (cut.output / "slow").touch()
    begun = cut.output / "LDAAQU_reduction=8" / "seed_1" / "last_checkpoint"

    def interrupt() -> None:
        while not begun.exists() or begun.read_text() != "21":
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    # A shell's background jobs ignore it.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(cut, jobs=2)
    signal.signal(signal.SIGINT, previous)
    assert not (cut.output / "results.json").exists()
    (cut.output / "slow").unlink()
    before = len(calls(cut))
    assert run(cut) == []
    assert [call for call in calls(cut)[before:] if call[1] == "1"] == [
        ("Nearest", "1", True),
        ("LDAAQU", "1", True),
    ]

    def kept(study: Study) -> list[dict]:
        results = read(study.output / "results.json")
        varying = {"peak_memory", "jobs"}
        return [{k: v for k, v in r.items() if k not in varying} for r in results]

    assert kept(cut) == kept(whole)


def test_a_start_waits_for_the_runs_that_a_killed_one_has_left(study, capsys):
    left = study()
    left.output.mkdir()
    slow = left.output / "slow"
    slow.touch()
    killed = multiprocessing.get_context("fork").Process(target=run, args=(left, "1"))
    killed.start()
    metrics = left.output / "Nearest" / "seed_1" / "metrics.json"
    while not metrics.exists() or metrics.read_text().count("\n") < 21:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    cfg = left.prepare()
    threading.Timer(1, slow.unlink).start()
    run_all(left, cfg, [1], FAKE, jobs=1, threads=1)
    assert "are still going: waiting for their end" in capsys.readouterr().out
    assert calls(left)[1:] == [("Nearest", "1", True), ("LDAAQU", "1", False)]
    assert metrics.read_text().count('"bbox/AP"') == 2  # the one that was left had ended


@pytest.mark.parametrize("text, seeds", [("1-3,7", [1, 2, 3, 7]), ("5", [5]), ("2,1-2", [1, 2])])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "1-", "3-1", "a", "1;2", "-1", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"upsamplers": ("Nearest", "Carafe")}, "'Carafe'; did you mean CARAFE?"),
        ({"upsamplers": ("Nearest", "LDAAQU:heads=2")}, "LDAAQU has no option 'heads'"),
        ({"upsamplers": ("Nearest", "LDAAQU:reduction=a")}, "reduction must be an integer"),
        ({"upsamplers": ("CARAFE", "LDAAQU")}, "--baseline 'Nearest': not among CARAFE, LDAAQU"),
        ({"keys": ("MODEL.FPN.UPSAMPLERS",)}, "MODEL.FPN.UPSAMPLERS"),
        ({"keys": ("MODEL.SEM_SEG_HEAD.UPSAMPLER",)}, "does not use it"),
        (
            {"opts": ("MODEL.LDA_AQU.OFFSET_RANGE", "5")},
            "Nearest: MODEL.LDA_AQU.OFFSET_RANGE has no effect: it is no option of the model's "
            "upsamplers, Nearest; give those of an upsampler that is compared with its "
            "name, as LDAAQU:offset_range=5",
        ),
        ({"opts": ("MODEL.SEM_SEG_HEAD.UPSAMPLER", "CARAFE")}, "'CARAFE' has no effect"),
        ({"opts": ("DATASETS.TEST", "()")}, "DATASETS.TEST is empty"),
        ({"opts": ("MODEL.WEIGHTS", "none.pth")}, "'none.pth' does not exist"),
        (
            {
                **{"keys": ("MODEL.ROI_MASK_HEAD.UPSAMPLER",), "upsamplers": ("Nearest", "FADE")},
                "opts": ("MODEL.ROI_MASK_HEAD.NAME", "UpsamplerMaskRCNNConvHead"),
            },
            "MODEL.ROI_MASK_HEAD.UPSAMPLER 'FADE'",
        ),
    ],
)
def test_mistakes_are_seen_before_anything_runs(study, changes, message):
    wrong = study(**changes)
    with pytest.raises(InputError) as error:
        wrong.prepare()
    assert message in str(error.value)
    assert not wrong.output.exists()


def test_the_folder_of_another_study(study):
    study().prepare()
    study("Nearest", "FADE").prepare()
    with pytest.raises(InputError, match="of another study, in which SOLVER.BASE_LR is 0.01"):
        study(opts=("SOLVER.MAX_ITER", "40", "SOLVER.BASE_LR", "0.02")).prepare()


def arguments(config: Path, output: Path, *args: object) -> list[str]:
    return [*map(str, ("--config-file", config, *args, "--output", output))]


@pytest.fixture
def main() -> Iterator[Callable[..., int]]:
    """That of the tool, which takes SIGTERM."""
    previous = signal.getsignal(signal.SIGTERM)
    yield runpy.run_path(str(TOOL))["main"]
    signal.signal(signal.SIGTERM, previous)


ONE_RUN = ("--upsamplers", "Nearest", "--seeds", "1", "--threads", 1)


def test_the_status_of_a_study_with_a_run_that_failed(
    main, study, tiny_config, monkeypatch, capsys
):
    monkeypatch.setitem(main.__wrapped__.__globals__, "TRAIN_NET", FAKE)
    output = study().output
    output.mkdir()
    (output / "broken").write_text("Nearest")
    assert main(arguments(tiny_config, output, *ONE_RUN)) == 1
    assert f"1 runs failed, see\n{output}/Nearest/seed_1/console.log" in capsys.readouterr().err


def test_train_net_and_a_report(main, tiny_config, tmp_path):
    assert main(arguments(tiny_config, tmp_path / "out", *ONE_RUN)) == 0
    file = tmp_path / "out" / "results.json"
    (result,) = read(file)
    assert result["metrics"]["bbox/AP"] is not None and result["seconds"] > 0
    assert main(["--report", str(file), "--output", str(tmp_path / "again")]) == 0
    pages = [(tmp_path / name / "report.md").read_text() for name in ("out", "again")]
    assert pages[0] == pages[1] and "box AP" in pages[0]


@pytest.mark.slow
def test_a_study_of_train_net_that_is_killed_again_and_again(tiny_config, tmp_path):
    arms = ("--upsamplers", "Nearest", "LDAAQU", "--seeds", "1-2", "--jobs", 2, "--threads", 1)
    opts = ("SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "1")
    cut, whole = (
        [sys.executable, str(TOOL), *arguments(tiny_config, tmp_path / name, *arms), *opts]
        for name in ("cut", "whole")
    )
    for folder, number in (
        ("Nearest/seed_1", signal.SIGTERM),
        ("LDAAQU/seed_2", signal.SIGKILL),
    ):
        process = subprocess.Popen(cut)
        while not (tmp_path / "cut" / folder / "last_checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(300) == (143 if number is signal.SIGTERM else -signal.SIGKILL)
    assert subprocess.run(cut).returncode == 0
    assert subprocess.run(whole).returncode == 0
    logs = [path.read_text() for path in (tmp_path / "cut").glob("*/*/console.log")]
    assert sum("Resuming at iteration" in log for log in logs) >= 2
    results, expected = (read(tmp_path / name / "results.json") for name in ("cut", "whole"))
    keep = ("seed", "upsampler", "metrics")
    assert [[r[k] for k in keep] for r in results] == [[r[k] for k in keep] for r in expected]
    assert len(expected) == 4
    for path in (tmp_path / "whole").glob("*/*/model_final.pth"):
        other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        weights, same = (torch.load(file)["model"] for file in (path, other))
        assert all(torch.equal(weights[name], same[name]) for name in weights | same)
