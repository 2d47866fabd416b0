import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.utils import comm
from forked import fork_processes
from lda_aqu.evaluation import SemanticEvaluator
from lda_aqu.evaluation.sem_seg import NO_LABEL, boundary_labels
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import distributed

CLASSES = ["sky", "road", "tree", "car", "unused"]
IGNORE = 255
SHAPE = (60, 80)  # a diagonal of 100 pixels, so boundary regions are 2 pixels wide
close = partial(pytest.approx, abs=1e-9, nan_ok=True)


def inner_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """What an erosion by a square takes away from a mask, with nothing outside the image."""
    windows = sliding_window_view(np.pad(mask, width), (2 * width + 1, 2 * width + 1))
    return mask & ~windows.all(axis=(2, 3))


def expected_metrics(truths, predictions, classes) -> dict[str, float]:
    """One mask at a time; a class that is not in the ground truth is NaN and not in the means."""
    true_positive, labelled, predicted, boundary, either = np.zeros((5, len(classes)))
    for truth, prediction in zip(truths, predictions, strict=True):
        valid = truth != IGNORE
        width = round(0.02 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
        for c in range(len(classes)):
            t, p = truth == c, (prediction == c) & valid
            true_positive[c] += (t & p).sum()
            labelled[c] += t.sum()
            predicted[c] += p.sum()
            t, p = inner_boundary(t, width), inner_boundary(p, width)
            boundary[c] += (t & p).sum()
            either[c] += (t | p).sum()
    known = [c for c in range(len(classes)) if labelled[c]]
    metrics = {}
    for name, numerator, denominator in (
        ("IoU", true_positive, labelled + predicted - true_positive),
        ("ACC", true_positive, labelled),
        ("BoundaryIoU", boundary, either),
    ):
        values = [
            100 * numerator[c] / denominator[c] if c in known else math.nan
            for c in range(len(classes))
        ]
        metrics |= {f"{name}-{c}": v for c, v in zip(classes, values, strict=True)}
        metrics[{"IoU": "mIoU", "ACC": "mACC"}.get(name, name)] = np.nanmean(values)
    metrics["pACC"] = 100 * true_positive.sum() / labelled.sum()
    metrics["fwIoU"] = sum(metrics[f"IoU-{classes[c]}"] * labelled[c] for c in known)
    metrics["fwIoU"] /= labelled.sum()
    return metrics


def random_labels(rng, classes=4, holes=True) -> np.ndarray:
    """Rectangles of some classes, and of ignored pixels."""
    labels = np.full(SHAPE, rng.integers(classes))
    for kind in [*rng.integers(0, classes, 8), *([IGNORE] * 2 if holes else [])]:
        y, x = rng.integers(0, SHAPE[0]), rng.integers(0, SHAPE[1])
        labels[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = kind
    return labels


def damage(truth, rng) -> np.ndarray:
    """Shifted, with noise, and something everywhere, as a model predicts it."""
    prediction = np.roll(truth, rng.integers(0, 4, 2), axis=(0, 1))
    wrong = (rng.random(truth.shape) < 0.02) | (prediction == IGNORE)
    prediction[wrong] = rng.integers(0, len(CLASSES), wrong.sum())
    return prediction


def write_dataset(root: Path, truths: list[np.ndarray]) -> None:
    for i, truth in enumerate(truths):
        Image.fromarray(truth.astype(np.uint8)).save(root / f"label_{i}.png")


@pytest.fixture
def register_dataset(tmp_path):
    """Write label maps, register them as "labels", and forget them afterwards."""

    def write_and_register(truths: list[np.ndarray]) -> None:
        write_dataset(tmp_path, truths)
        records = [
            {"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"label_{i}.png")}
            for i in range(len(truths))
        ]
        DatasetCatalog.register("labels", lambda: records)
        MetadataCatalog.get("labels").set(stuff_classes=CLASSES, ignore_label=IGNORE)

    yield write_and_register
    DatasetCatalog.pop("labels", None)
    MetadataCatalog.pop("labels", None)


def scores(labels: np.ndarray) -> dict[str, torch.Tensor]:
    """Scores (K, H, W), of which those of ``labels`` are the highest."""
    known = torch.from_numpy(np.where(labels == IGNORE, 0, labels))
    noise = torch.rand(len(CLASSES), *labels.shape, generator=torch.Generator().manual_seed(0))
    return {"sem_seg": noise + 2 * torch.nn.functional.one_hot(known, len(CLASSES)).movedim(-1, 0)}


def evaluate(predictions: dict[int, np.ndarray], **kwargs) -> dict[str, float] | None:
    """Metrics of predictions by number of the image."""
    evaluator = SemanticEvaluator("labels", **kwargs)
    evaluator.reset()
    for i, labels in predictions.items():
        evaluator.process([{"file_name": f"{i}.jpg"}], [scores(labels)])
    results = evaluator.evaluate()
    return results and results["sem_seg"]


@pytest.mark.parametrize("seed", range(5))
def test_against_one_mask_at_a_time(seed, register_dataset):
    rng = np.random.default_rng(seed)
    truths = [random_labels(rng) for _ in range(4)]
    predictions = [damage(truth, rng) for truth in truths]
    register_dataset(truths)
    metrics = evaluate(dict(enumerate(predictions)))
    assert metrics == close(expected_metrics(truths, predictions, CLASSES))
    assert 20 < metrics["BoundaryIoU"] < metrics["mIoU"] < 95


def test_ground_truth_against_itself(register_dataset):
    rng = np.random.default_rng(5)
    truths = [random_labels(rng) for _ in range(4)]
    register_dataset(truths)
    metrics = evaluate(dict(enumerate(truths)))
    assert {v for v in metrics.values() if not math.isnan(v)} == {100}
    assert {k for k, v in metrics.items() if math.isnan(v)} == {
        "IoU-unused",
        "BoundaryIoU-unused",
        "ACC-unused",
    }


def test_boundary_iou_of_two_halves(register_dataset):
    """Worked out by hand: left and right half, predicted one pixel too far to the right."""
    truth = np.zeros(SHAPE, int)
    truth[:, 40:] = 1
    register_dataset([truth])
    metrics = evaluate({0: np.roll(truth, 1, axis=1) * (np.arange(80) > 39)})
    # Each boundary region is a frame of width 2: the whole half but for the 56 rows of its inside.
    left, right = 60 * 40 - 56 * 36, 60 * 41 - 56 * 37
    agreed = left - 56  # on 56 rows one of the two columns at the inner edge is the same
    assert metrics["BoundaryIoU-sky"] == pytest.approx(100 * agreed / (left + right - agreed))


def test_what_is_predicted_on_ignored_pixels_does_not_matter(register_dataset):
    rng = np.random.default_rng(6)
    truth = random_labels(rng)
    assert (truth == IGNORE).any()
    register_dataset([truth])
    prediction = damage(truth, rng)
    other = prediction.copy()
    other[truth == IGNORE] = rng.integers(0, len(CLASSES), (truth == IGNORE).sum())
    assert not np.array_equal(prediction, other)
    assert evaluate({0: other}) == close(evaluate({0: prediction}))


@pytest.mark.parametrize("width", [1, 2, 7])
def test_boundary_labels_are_those_of_each_mask(width):
    labels = random_labels(np.random.default_rng(width), classes=1000, holes=False)
    expected = np.full(SHAPE, NO_LABEL)
    for label in np.unique(labels):
        expected[inner_boundary(labels == label, width)] = label
    assert np.array_equal(boundary_labels(labels, width), expected)


def test_predictions_are_kept(register_dataset, tmp_path):
    truth = random_labels(np.random.default_rng(7))
    register_dataset([truth])
    evaluate({0: truth}, output_dir=str(tmp_path / "inference"))
    content = json.loads((tmp_path / "inference" / "sem_seg_predictions.json").read_text())
    assert {segment["file_name"] for segment in content} == {"0.jpg"}


def test_reset_forgets(register_dataset):
    rng = np.random.default_rng(8)
    truth = random_labels(rng)
    register_dataset([truth])
    evaluator = SemanticEvaluator("labels")
    for labels in (damage(truth, rng), truth):
        evaluator.reset()
        evaluator.process([{"file_name": "0.jpg"}], [scores(labels)])
    metrics = evaluator.evaluate()["sem_seg"]
    assert metrics["mIoU"] == metrics["BoundaryIoU"] == 100


def test_table_names_every_class(register_dataset, caplog):
    truth = random_labels(np.random.default_rng(9))
    register_dataset([truth])
    with caplog.at_level("INFO", logger="lda_aqu"):
        evaluate({0: truth})
    for word in ("mean", "BoundaryIoU", *CLASSES):
        assert word in caplog.text, word


def evaluate_share(root: Path, predictions: dict[int, np.ndarray]) -> None:
    """Evaluate in one of several processes; each has every n-th image."""
    rank, size = comm.get_rank(), comm.get_world_size()
    metrics = evaluate({i: p for i, p in predictions.items() if i % size == rank})
    (root / f"metrics_{rank}.json").write_text(json.dumps(metrics))
    # A process that ends while it is connected may be aborted.
    comm.synchronize()
    distributed.destroy_process_group()


def test_two_processes_give_the_figures_of_one(register_dataset, tmp_path, monkeypatch):
    fork_processes(monkeypatch)
    rng = np.random.default_rng(10)
    truths = [random_labels(rng) for _ in range(3)]
    predictions = {i: damage(truth, rng) for i, truth in enumerate(truths)}
    register_dataset(truths)
    expected = evaluate(predictions)
    launch(evaluate_share, 2, dist_url="auto", args=(tmp_path, predictions))
    assert json.loads((tmp_path / "metrics_0.json").read_text()) == close(expected)
    assert json.loads((tmp_path / "metrics_1.json").read_text()) is None
