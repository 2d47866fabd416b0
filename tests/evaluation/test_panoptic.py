import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from detectron2.utils import comm
from lda_aqu.evaluation import PanopticEvaluator
from PIL import Image

# Category ids with gaps, so that they are not the contiguous ones; "unused" is never drawn.
THINGS = {3: "cat", 7: "dog", 20: "bird", 21: "unused"}
STUFF = {101: "sky", 105: "grass"}
NAMES = THINGS | STUFF
# As Detectron2 registers them: 0 among the stuff is whatever is a thing.
CONTIGUOUS = ({3: 0, 7: 1, 20: 2, 21: 3}, {0: 0, 101: 1, 105: 2})
close = partial(pytest.approx, abs=1e-9, nan_ok=True)


class Panoptic(NamedTuple):
    """Segment ids (H, W), 0 where there is none; category of each id; ids of the crowds."""

    ids: np.ndarray
    categories: dict[int, int]
    crowds: frozenset[int] = frozenset()


def expected_metrics(truths, predictions, names, things) -> dict[str, float]:
    """The definition of PQ (Kirillov et al., CVPR 2019), with COCO's rules for void and crowds."""
    tp, fp, fn, iou_sum = Counter(), Counter(), Counter(), Counter()
    for truth, prediction in zip(truths, predictions, strict=True):
        void = truth.ids == 0
        matched = set()
        for t, category in truth.categories.items():
            if t in truth.crowds:
                continue
            for p, predicted_category in prediction.categories.items():
                if category != predicted_category:
                    continue
                a, b = truth.ids == t, prediction.ids == p
                iou = np.count_nonzero(a & b) / np.count_nonzero(a | (b & ~void))
                if iou > 0.5:
                    matched |= {("truth", t), ("prediction", p)}
                    tp[category] += 1
                    iou_sum[category] += iou
            fn[category] += ("truth", t) not in matched
        for p, category in prediction.categories.items():
            excused = void.copy()
            for crowd in truth.crowds:
                if truth.categories[crowd] == category:
                    excused |= truth.ids == crowd
            mask = prediction.ids == p
            share = np.count_nonzero(mask & excused) / np.count_nonzero(mask)
            fp[category] += ("prediction", p) not in matched and share <= 0.5

    metrics, scores = {}, {}
    for category, name in names.items():
        weight = tp[category] + 0.5 * fp[category] + 0.5 * fn[category]
        if weight == 0:
            score = (math.nan,) * 3
        else:
            sq = iou_sum[category] / tp[category] if tp[category] else 0.0
            rq = tp[category] / weight
            scores[category] = score = (100 * sq * rq, 100 * sq, 100 * rq)
        metrics |= {f"{m}-{name}": v for m, v in zip(("PQ", "SQ", "RQ"), score, strict=True)}
    for suffix, chosen in (
        ("", scores),
        ("_th", [c for c in scores if c in things]),
        ("_st", [c for c in scores if c not in things]),
    ):
        means = np.mean([scores[c] for c in chosen], axis=0)
        metrics |= {f"{m}{suffix}": v for m, v in zip(("PQ", "SQ", "RQ"), means, strict=True)}
    return metrics


def random_truth(rng, height=48, width=64) -> Panoptic:
    """Overlapping rectangles over two regions of stuff, with void, and some crowds."""
    ids = np.zeros((height, width), np.int64)
    free = iter(rng.choice(2**24 - 1, 40, replace=False).tolist())
    categories, crowds = {}, {}
    for category, columns in ((101, slice(0, 25)), (105, slice(30, 64))):
        if rng.random() < 0.8:
            categories[segment := 1 + next(free)] = category
            ids[:, columns] = segment
    for _ in range(rng.integers(1, 9)):
        y, x = rng.integers(0, height - 6), rng.integers(0, width - 6)
        category = int(rng.choice([3, 7, 20]))
        segment = 1 + next(free)
        categories[segment] = category
        ids[y : y + rng.integers(4, 24), x : x + rng.integers(4, 24)] = segment
        if rng.random() < 0.25:  # COCO has one crowd of a category in an image at most
            crowds.setdefault(category, segment)
    ids[rng.integers(0, height) :, : rng.integers(0, width // 2)] = 0
    return only_visible(Panoptic(ids, categories, frozenset(crowds.values())))


def only_visible(panoptic: Panoptic) -> Panoptic:
    visible = set(np.unique(panoptic.ids).tolist())
    categories = {s: c for s, c in panoptic.categories.items() if s in visible}
    return Panoptic(panoptic.ids, categories, panoptic.crowds & visible)


def drop(truth, rng) -> Panoptic:
    dropped = rng.permutation(list(truth.categories))[: 1 + len(truth.categories) // 3]
    return only_visible(truth._replace(ids=np.where(np.isin(truth.ids, dropped), 0, truth.ids)))


def merge(truth, rng) -> Panoptic:
    """The first two segments of each category that has two become one."""
    ids, first, merged = truth.ids.copy(), {}, set()
    for segment, category in truth.categories.items():
        if category not in first:
            first[category] = segment
        elif category not in merged:
            merged.add(category)
            ids[ids == segment] = first[category]
    return only_visible(truth._replace(ids=ids))


def shift(truth, rng) -> Panoptic:
    return truth._replace(ids=np.roll(truth.ids, rng.integers(1, 5, 2), axis=(0, 1)))


def mislabel(truth, rng) -> Panoptic:
    known = [*sorted(set(truth.categories.values())), 3]
    wrong = {
        s: int(rng.choice(known)) if rng.random() < 0.4 else c for s, c in truth.categories.items()
    }
    return truth._replace(categories=wrong)


def clutter(truth, rng) -> Panoptic:
    """Cells of a grid become segments of their own, whatever they cover: void and crowds too."""
    height, width = truth.ids.shape
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    cells = 2**24 - 100 + rows[:, None] * 8 + columns
    taken = rng.random(64)[cells - cells[0, 0]] < 0.3
    ids, known = np.where(taken, cells, truth.ids), list(truth.categories.values())
    clutter = {c: int(rng.choice(known)) for c in np.unique(cells[taken]).tolist()}
    return only_visible(Panoptic(ids, truth.categories | clutter))


DAMAGES = [drop, merge, shift, mislabel, clutter]


def write_dataset(root: Path, truths: list[Panoptic]) -> None:
    """Panoptic ground truth in COCO's format: panoptic.json and panoptic/."""
    (root / "panoptic").mkdir()
    annotations = []
    for image_id, truth in enumerate(truths):
        colors = np.zeros((*truth.ids.shape, 3), np.uint8)
        for segment in truth.categories:
            colors[truth.ids == segment] = [segment % 256, segment // 256 % 256, segment // 65536]
        Image.fromarray(colors).save(root / "panoptic" / f"label_{image_id}.png")
        segments = [
            {
                "id": s,
                "category_id": c,
                "iscrowd": int(s in truth.crowds),
                "area": int((truth.ids == s).sum()),
            }
            for s, c in truth.categories.items()
        ]
        annotations.append(
            {
                "image_id": image_id,
                "file_name": f"label_{image_id}.png",
                "segments_info": segments,
            }
        )
    height, width = truths[0].ids.shape
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width}
            for i in range(len(truths))
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": n, "isthing": int(i in THINGS)} for i, n in NAMES.items()],
    }
    (root / "panoptic.json").write_text(json.dumps(content))


def register(root: Path, name: str) -> None:
    MetadataCatalog.get(name).set(
        panoptic_json=str(root / "panoptic.json"),
        panoptic_root=str(root / "panoptic"),
        thing_dataset_id_to_contiguous_id=CONTIGUOUS[0],
        stuff_dataset_id_to_contiguous_id=CONTIGUOUS[1],
    )


@pytest.fixture
def register_dataset(tmp_path):
    """Write ground truth, register it as "shapes", and forget it afterwards."""

    def write_and_register(truths: list[Panoptic]) -> str:
        write_dataset(tmp_path, truths)
        register(tmp_path, "shapes")
        return "shapes"

    yield write_and_register
    MetadataCatalog.pop("shapes", None)


def as_output(prediction: Panoptic, things: dict[int, int], stuff: dict[int, int]) -> dict:
    """A prediction as PanopticFPN returns it; ``things`` and ``stuff`` are contiguous ids."""
    segments = []
    for segment, category in prediction.categories.items():
        is_thing = category in things
        contiguous = things[category] if is_thing else stuff[category]
        segments.append({"id": segment, "isthing": is_thing, "category_id": contiguous})
    return {"panoptic_seg": (torch.from_numpy(prediction.ids.astype(np.int32)), segments)}


def evaluate(name: str, predictions: dict[int, Panoptic], **kwargs) -> dict[str, float] | None:
    """Metrics of predictions by image id, given to the evaluator in two batches."""
    metadata = MetadataCatalog.get(name)
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    evaluator = PanopticEvaluator(name, **kwargs)
    evaluator.reset()
    inputs = [{"image_id": i, "file_name": "same_name.jpg"} for i in predictions]
    outputs = [as_output(p, things, stuff) for p in predictions.values()]
    for batch in (slice(0, 1), slice(1, None)):
        evaluator.process(inputs[batch], outputs[batch])
    results = evaluator.evaluate()
    return results and results["panoptic_seg"]


def test_ground_truth_against_itself(register_dataset):
    rng = np.random.default_rng(0)
    truths = [random_truth(rng) for _ in range(12)]
    assert any(truth.crowds for truth in truths)
    metrics = evaluate(register_dataset(truths), dict(enumerate(truths)))
    for name in NAMES.values():
        assert metrics[f"PQ-{name}"] == 100 or (
            name == "unused" and math.isnan(metrics["PQ-unused"])
        )
    assert {metrics[m + s] for m in ("PQ", "SQ", "RQ") for s in ("", "_th", "_st")} == {100}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ground_truth_against_the_definition(damage, register_dataset):
    rng = np.random.default_rng(1)
    truths = [random_truth(rng) for _ in range(12)]
    predictions = [damage(truth, rng) for truth in truths]
    metrics = evaluate(register_dataset(truths), dict(enumerate(predictions)))
    expected = expected_metrics(truths, predictions, NAMES, THINGS)
    assert metrics == close(expected)
    assert 5 < metrics["PQ"] < 99


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_segments_against_the_definition(seed, register_dataset):
    rng = np.random.default_rng([2, seed])
    truths, predictions = ([random_truth(rng) for _ in range(12)] for _ in range(2))
    metrics = evaluate(register_dataset(truths), dict(enumerate(predictions)))
    assert metrics == close(expected_metrics(truths, predictions, NAMES, THINGS))


def test_predictions_in_void_and_crowds_are_not_false_positives(register_dataset):
    ids = np.zeros((10, 20), int)
    ids[:, 10:15], ids[:, 15:] = 1, 2  # the left half is void
    truth = Panoptic(ids, {1: 3, 2: 3}, frozenset({2}))
    predicted = ids.copy()
    predicted[:, :4], predicted[:, 6:9], predicted[:5, 15:], predicted[5:, 15:] = 5, 6, 7, 8
    prediction = Panoptic(predicted, {1: 3, 5: 3, 6: 101, 7: 3, 8: 7})
    metrics = evaluate(register_dataset([truth]), {0: prediction})
    assert metrics["PQ-cat"] == 100  # 5 is in void, 7 in a crowd of cats
    assert math.isnan(metrics["PQ-sky"])  # 6 is in void, and there is no other sky
    assert metrics["PQ-dog"] == 0  # 8 is in a crowd, but of cats
    assert metrics["PQ_th"] == 50


def test_segments_without_pixels_do_not_count(register_dataset):
    """PanopticFPN returns them where STUFF_AREA_LIMIT is 0 and things cover all of some stuff."""
    instances = Instances((8, 8), scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=int))
    instances.pred_masks = torch.ones(1, 8, 8, dtype=torch.bool)
    sky = torch.ones(8, 8, dtype=torch.int64)
    output = combine_semantic_and_instance_outputs(instances, sky, 0.5, 0, 0.5)
    assert len(output[1]) == 2
    evaluator = PanopticEvaluator(register_dataset([Panoptic(np.ones((8, 8), int), {1: 3})]))
    evaluator.process([{"image_id": 0}], [{"panoptic_seg": output}])
    metrics = evaluator.evaluate()["panoptic_seg"]
    assert metrics["PQ-cat"] == 100 and math.isnan(metrics["PQ-sky"])


def test_a_missing_prediction_is_an_error(register_dataset):
    rng = np.random.default_rng(3)
    truths = [random_truth(rng) for _ in range(3)]
    with pytest.raises(ValueError, match="no prediction for the image with id 2"):
        evaluate(register_dataset(truths), dict(enumerate(truths[:2])))


def test_predictions_are_kept_in_cocos_format(register_dataset, tmp_path):
    rng = np.random.default_rng(4)
    truths = [random_truth(rng) for _ in range(3)]
    output = tmp_path / "new" / "inference"
    evaluate(register_dataset(truths), dict(enumerate(truths)), output_dir=str(output))
    annotations = json.loads((output / "panoptic_predictions.json").read_text())["annotations"]
    assert [a["image_id"] for a in annotations] == [0, 1, 2]
    for annotation, truth in zip(annotations, truths, strict=True):
        assert {s["id"]: s["category_id"] for s in annotation["segments_info"]} == truth.categories
        png = np.array(Image.open(output / "panoptic_predictions" / annotation["file_name"]))
        assert np.array_equal(png @ [1, 256, 65536], truth.ids)


def test_an_image_id_that_is_a_path_leads_nowhere(register_dataset, tmp_path):
    truth = random_truth(np.random.default_rng(4))
    name = register_dataset([truth])
    content = json.loads((tmp_path / "panoptic.json").read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "../../../x"
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    output = tmp_path / "some" / "output" / "inference"
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="non-negative integer"):  # which hotcoco needs
        evaluate(name, {"../../../x": truth}, output_dir=str(output))
    written = {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert len(written) == 2 and all(path.is_relative_to(output) for path in written)


def test_outputs_are_left_as_they_were(register_dataset):
    """Other evaluators and the drawing of predictions read them too."""
    truth = random_truth(np.random.default_rng(5))
    evaluator = PanopticEvaluator(register_dataset([truth]))
    output, untouched = (as_output(truth, *CONTIGUOUS) for _ in range(2))
    evaluator.process([{"image_id": 0}], [output])
    assert output["panoptic_seg"][1] == untouched["panoptic_seg"][1]
    assert torch.equal(output["panoptic_seg"][0], untouched["panoptic_seg"][0])


def test_reset_forgets(register_dataset):
    rng = np.random.default_rng(6)
    truths = [random_truth(rng) for _ in range(2)]
    evaluator = PanopticEvaluator(register_dataset(truths))
    outputs = [as_output(truth, *CONTIGUOUS) for truth in truths]
    evaluator.process([{"image_id": 0}, {"image_id": 1}], outputs)
    evaluator.reset()
    evaluator.process([{"image_id": 0}], outputs[:1])
    with pytest.raises(ValueError, match="no prediction for the image with id 1"):
        evaluator.evaluate()


def test_tables_name_groups_and_classes(register_dataset, caplog):
    truth = random_truth(np.random.default_rng(7))
    with caplog.at_level("INFO", logger="lda_aqu"):
        evaluate(register_dataset([truth]), {0: truth})
    for word in ("All", "Things", "Stuff", "#classes", *NAMES.values()):
        assert word in caplog.text, word


def test_two_processes_give_the_figures_of_one(register_dataset, monkeypatch):
    """Each has every second image, and the first gathers what both have."""
    rng = np.random.default_rng(8)
    truths = [random_truth(rng) for _ in range(7)]
    predictions = {i: shift(truth, rng) for i, truth in enumerate(truths)}
    name = register_dataset(truths)
    expected = evaluate(name, predictions)
    gathered: list[list] = []
    metrics = {}
    for rank in (1, 0):

        def gather(own: list, rank: int = rank) -> list[list]:
            gathered.insert(0, own)
            return [] if rank else gathered

        monkeypatch.setattr(comm, "synchronize", lambda: None)
        monkeypatch.setattr(comm, "gather", gather)
        monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
        metrics[rank] = evaluate(name, {i: p for i, p in predictions.items() if i % 2 == rank})
    assert metrics[0] == close(expected)
    assert metrics[1] is None and len(gathered) == 2


@pytest.fixture(scope="module")
def coco(shared_data, tmp_path_factory):
    """Ten images of COCO: a registered name, ground truths by image id, category names, things."""
    folder = shared_data / "coco"
    content = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    content["annotations"], truths = content["annotations"][:10], {}
    kept = {annotation["image_id"] for annotation in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    file = tmp_path_factory.mktemp("coco") / "panoptic.json"
    file.write_text(json.dumps(content))
    for annotation in content["annotations"]:
        png = Image.open(folder / "panoptic_val2017" / annotation["file_name"])
        segments = annotation["segments_info"]
        truths[annotation["image_id"]] = Panoptic(
            np.array(png) @ [1, 256, 65536],
            {s["id"]: s["category_id"] for s in segments},
            frozenset(s["id"] for s in segments if s["iscrowd"]),
        )
    builtin = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    MetadataCatalog.get("coco_subset").set(
        panoptic_json=str(file),
        panoptic_root=str(folder / "panoptic_val2017"),
        thing_dataset_id_to_contiguous_id=builtin.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=builtin.stuff_dataset_id_to_contiguous_id,
    )
    names = {c["id"]: c["name"] for c in content["categories"]}
    yield "coco_subset", truths, names, {c["id"] for c in content["categories"] if c["isthing"]}
    MetadataCatalog.pop("coco_subset")


def test_coco_ground_truth_against_itself(coco):
    name, truths, _, _ = coco
    assert any(truth.crowds for truth in truths.values())
    metrics = evaluate(name, truths)
    values = [value for value in metrics.values() if not math.isnan(value)]
    assert len(values) > 100 and set(values) == {100.0}


def test_damaged_coco_against_the_definition(coco):
    name, truths, names, things = coco
    rng = np.random.default_rng(9)
    predictions = {
        image_id: DAMAGES[i % len(DAMAGES)](truth, rng)
        for i, (image_id, truth) in enumerate(truths.items())
    }
    metrics = evaluate(name, predictions)
    assert metrics == close(expected_metrics(truths.values(), predictions.values(), names, things))
    assert 20 < metrics["PQ"] < 95
