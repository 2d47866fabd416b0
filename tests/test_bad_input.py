"""Seeded fuzz of what users provide: each mistake is one clear line, and never a traceback.

``FUZZ_CASES=2000 pytest tests/test_bad_input.py -s`` tries so many of each kind, and prints counts.
"""

import json
import os
import pickle
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from lda_aqu.engine import Checkpointer, check_datasets, check_model, load_config
from lda_aqu.engine.config_merge import config_items
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import build_upsampler
from paths import ROOT
from torch import nn

CASES = int(os.environ.get("FUZZ_CASES", 100))
ANNOTATION_CASES = int(os.environ.get("FUZZ_CASES", 40))  # of which many read all images

Outcome = str  # "accepted" or "refused"


def attempt(action: Callable[[], object]) -> Outcome:
    """Do something with bad input: anything but an InputError of one line fails the test."""
    try:
        action()
    except InputError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < 1000, message
        return "refused"
    return "accepted"


totals: Counter[Outcome] = Counter()


def report(kind: str, outcomes: Counter[Outcome]) -> None:
    """Print the counts of a test in which every case was clean: any other has failed before."""
    totals.update(outcomes)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"\n{kind}: {outcomes.total()} cases tried, all clean: {counts}")


@pytest.fixture(scope="module", autouse=True)
def report_totals() -> Iterator[None]:
    yield
    report("in all", Counter(totals))


# Configs

ODD_VALUES = [
    *(-1, 0, 1, 7, 10**30, -0.5, 0.5, 1e300, float("nan"), float("inf")),
    *("", "many", "None", "nan", "1e999", "[", "(1,", "{[]: 1}", "__import__('os')", "ä\x00"),
    *(True, None, [], [0], [-1, "a"], [[]], ["x", "y"], {}, {"A": 1}, [1, [2, [3]]], "9" * 5000),
]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def misspell(key: str, rng: random.Random) -> str:
    place = rng.randrange(len(key))
    return key[:place] + rng.choice(["", "_", "X", ".", key[place] * 2]) + key[place + 1 :]


def nest(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.fixture(scope="module")
def known_keys() -> list[str]:
    return [key for key, _ in config_items(load_config("", []))]


@pytest.mark.parametrize("form", ["options", "file"])
def test_configs(known_keys, form, tmp_path):
    rng = random.Random(f"config {form}")
    outcomes = Counter()
    for _ in range(CASES):
        key, value = rng.choice(known_keys), rng.choice(ODD_VALUES)
        if rng.random() < 0.3:
            key = misspell(key, rng)
        if form == "options":
            outcomes[attempt(lambda opts=(key, str(value)): load_config("", list(opts)))] += 1
        else:
            path = tmp_path / "fuzz.yaml"
            path.write_text(yaml.safe_dump(nest(key, value)))
            outcomes[attempt(lambda path=path: load_config(str(path), []))] += 1
    report(f"configs by {form}", outcomes)
    assert outcomes["refused"] > CASES / 3


def test_damaged_config_files(tmp_path):
    rng = random.Random("damaged configs")
    source = (ROOT / "configs" / "Base-RCNN-FPN.yaml").read_bytes()
    outcomes = Counter()
    path = tmp_path / "fuzz.yaml"
    for _ in range(CASES):
        path.write_bytes(damage(source, rng))
        outcomes[attempt(lambda: load_config(str(path), []))] += 1
    report("damaged config files", outcomes)
    assert outcomes["refused"] > CASES / 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("_BASE_: fuzz.yaml", "_BASE_ leads back to itself"),
        ("", "does not hold keys with values"),
        ("- 1\n- 2", "does not hold keys with values"),
        ("VERSION: 1", "VERSION 1 must be 2"),
        ("MODEL: {MASK_ON: True}\nMODEL: {DEVICE: cpu}", "MODEL is twice in the block of line 1"),
        ("MODEL:\n  FPN: {NORM: BN, NORM: GN}", "NORM is twice in the block of line 2"),
        ("a: &a [*a]", "aliases make more than 100000 values"),
        (BOMB, "aliases make more than 100000 values"),
        ("MODEL: {TRUST_WEIGHTS: True}", "TRUST_WEIGHTS is for the command line alone"),
        ("MODEL: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("SOLVER: {BASE_LR: fast}", r"Type mismatch .* for config key: SOLVER\.BASE_LR"),
        ("SOLVER: {MAX_ITER: null}", r"SOLVER\.MAX_ITER None must be a number"),
        ("SOLVER: {STEPS: [a, b]}", r"SOLVER\.STEPS \('a', 'b'\): 'a' must be a number"),
        ("SOLVER: 3", "Type mismatch .* for config key: SOLVER$"),
        ("BASE_LR: 0.1", r"config key: BASE_LR'; did you mean SOLVER\.BASE_LR"),
    ],
)
def test_messages_of_config_files(tmp_path, text, message):
    path = tmp_path / "fuzz.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(str(path), [])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["DATALOADER.NUM_WORKERS", "-1"], r"DATALOADER\.NUM_WORKERS -1 must be at least 0"),
        (["SOLVER.BASE_LR", "-1"], r"SOLVER\.BASE_LR -1\.0 must be above 0"),
        (["SOLVER.BASE_LR", "1e999"], r"SOLVER\.BASE_LR inf must be finite"),
        (["INPUT.MASK_FORMAT", "rle"], r"MASK_FORMAT 'rle' must be polygon or bitmask"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], r"INPUT\.MIN_SIZE_TRAIN is empty"),
        (
            ["TEST.AUG.ENABLED", "True", "MODEL.META_ARCHITECTURE", "PanopticFPN"],
            "AUG.ENABLED True: .* PanopticFPN has no .* allowed are GeneralizedRCNN, SemanticSegme",
        ),
        (["TEST.AUG.MIN_SIZES", "(0,)"], r"TEST\.AUG\.MIN_SIZES \(0,\) must be at least 1"),
        (["TEST.AUG.MIN_SIZES", "()"], r"TEST\.AUG\.MIN_SIZES is empty"),
        (["INPUT.VALUE_RANGE", "(9, 0)"], r"VALUE_RANGE \[9, 0\] must be empty, or two numbers, t"),
        (["INPUT.VALUE_RANGE", "(0,)"], r"VALUE_RANGE \[0\] must be empty, or two numbers"),
        (["INPUT.VALUE_RANGE", "('a', 1)"], r"VALUE_RANGE \['a', 1\] must be empty, or two num"),
        (["MODEL.KEYPOINT_ON", "True"], "is not supported"),
        (["MODEL.LOAD_PROPOSALS", "True"], "is not supported"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "rotated boxes are not supported"),
        (["SEED", "4294967296"], r"SEED 4294967296 must be below 2\*\*31"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], r"MODEL\.PIXEL_MEAN \[1\.0\] must have 3 values"),
    ],
)
def test_messages_of_options(opts, message):
    with pytest.raises(InputError, match=message):
        load_config("", opts)


def test_integers_are_numbers():
    cfg = load_config("", ["MODEL.LDA_AQU.OFFSET_RANGE", "5", "SOLVER.BASE_LR", "1"])
    assert (cfg.MODEL.LDA_AQU.OFFSET_RANGE, cfg.SOLVER.BASE_LR) == (5.0, 1.0)


def test_models(tiny_config, known_keys):
    """Values that have the right type, and make no model."""
    rng = random.Random("models")
    model_keys = [key for key in known_keys if key.startswith(("MODEL.", "SOLVER."))]
    outcomes = Counter()
    for _ in range(CASES // 10):
        key = rng.choice(model_keys)
        value = rng.choice([-1, 0, 3, 17, "p9", "['p9']", "[]", "[[1.0]]", "'none'", 0.5])

        def build(key=key, value=value):
            check_model(load_config(str(tiny_config), [key, str(value)]))

        outcomes[attempt(build)] += 1
    report("models", outcomes)
    assert outcomes["refused"]


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.FPN.IN_FEATURES", "['res9']"],
            "MODEL.FPN.IN_FEATURES 'res9': .* gives res2, res3",
        ),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"], "model cannot be built: AssertionError"),
        (["MODEL.BACKBONE.NAME", "vit"], "No object named 'vit' found in 'BACKBONE' registry"),
        (["SOLVER.STEPS", "(3, 2)"], "model cannot be built: ValueError: Milestone"),
        (["SOLVER.LR_SCHEDULER_NAME", "Linear"], "Unknown LR scheduler: Linear"),
    ],
)
def test_messages_of_models(tiny_config, opts, message):
    with pytest.raises(InputError, match=message):
        check_model(load_config(str(tiny_config), opts))


# Annotation files

ODD_FIELDS = [None, -1, 0, 3.7, float("nan"), float("inf"), "", "a", [], {}, [1, 2], True, 10**12]


@pytest.fixture
def own(tmp_path, tiny_coco):
    """A dataset to damage: its annotations, and a function that checks others in their place."""
    root = tmp_path / "own"
    shutil.copytree(tiny_coco, root)
    annotations = root / "annotations.json"
    config = tmp_path / "own.yaml"
    config.write_text(f"""
DATASETS:
  TRAIN: [fuzzed]
  TEST: [fuzzed]
  COCO_FORMAT: {{fuzzed: {{ANNOTATIONS: "{annotations}", IMAGES: "{root}/images"}}}}
MODEL: {{MASK_ON: True, ROI_HEADS: {{NUM_CLASSES: 2}}}}
INPUT: {{MASK_FORMAT: bitmask}}
""")

    def check(content: Any) -> None:
        """Check these annotations: bytes as they are, other content as JSON."""
        annotations.write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )
        try:
            check_datasets(load_config(str(config), []), train=True)
        finally:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop("fuzzed", None)

    return json.loads(annotations.read_text()), check


def change_entry(content: dict, rng: random.Random) -> None:
    """Change, drop or repeat something in an annotation file."""
    kind = rng.choice(["images", "annotations", "categories"])
    entries = content[kind]
    entry = rng.choice(entries)
    field = rng.choice(sorted(entry))
    change = rng.randrange(8)
    if change == 0:
        del entry[field]
    elif change == 1:
        entries.append(dict(entry))
    elif change == 2:
        content[kind] = rng.choice(ODD_FIELDS)
    elif change == 3:
        entries[rng.randrange(len(entries))] = rng.choice(ODD_FIELDS)
    elif change == 4 and kind == "annotations":
        entry["bbox"][rng.randrange(4)] = rng.choice(ODD_FIELDS)
    elif change == 5 and kind == "annotations":
        mask = entry["segmentation"]
        part = rng.choice(["size", "counts"])
        counts = mask["counts"]
        mask[part] = rng.choice(
            [*ODD_FIELDS, counts[:-1], counts + "0", [5, 5], [-5, 6149], [64, 96]]
        )
    else:
        entry[field] = rng.choice(ODD_FIELDS)


def test_annotations(own):
    content, check = own
    rng = random.Random("annotations")
    outcomes = Counter()
    for _ in range(ANNOTATION_CASES):
        changed = json.loads(json.dumps(content))
        change_entry(changed, rng)
        outcomes[attempt(lambda changed=changed: check(changed))] += 1
    source = json.dumps(content).encode()
    for _ in range(ANNOTATION_CASES):
        damaged = damage(source, rng)
        outcomes[attempt(lambda damaged=damaged: check(damaged))] += 1
    report("annotation files", outcomes)
    assert outcomes["refused"] > ANNOTATION_CASES / 2


def set_field(kind: str, field: str, value: object) -> Callable[[dict], None]:
    return lambda content: content[kind][1].__setitem__(field, value)


def narrow(content: dict) -> None:
    content["images"][1]["width"] = 64
    for annotation in content["annotations"][2:4]:
        del annotation["segmentation"]
        annotation["bbox"][0] = 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("categories"), "format: KeyError: 'categories'"),
        (
            set_field("annotations", "category_id", 4),
            "annotation 2, cannot be read: .*category_id=4",
        ),
        (set_field("annotations", "id", 1), "two annotations with the id 1"),
        (set_field("images", "id", 0), "two images with the id 0"),
        (set_field("images", "width", "96"), "image 1: 'width' and 'height' must be integers"),
        (narrow, r"1\.png' has 96 x 64 pixels, by the annotations 64 x"),
        (set_field("annotations", "bbox", [200, 5, 9, 9]), r"outside of its image, 96 x 64"),
        (set_field("annotations", "bbox", [5, 5, float("nan"), 9]), "'bbox' is .*but must be .x"),
        (lambda c: c["annotations"][1].pop("area"), "annotation 2: KeyError: 'area'"),
        (
            lambda c: c["annotations"][1]["segmentation"].update(size=[96, 64]),
            "its mask is of the size",
        ),
    ],
)
def test_messages_of_annotations(own, change, message):
    content, check = own
    change(content)
    with pytest.raises(InputError, match=rf"dataset fuzzed: .*{message}"):
        check(content)


def test_harmless_oddities_of_annotations(own, caplog):
    content, check = own
    content["annotations"][0]["bbox"] = [-3, -2, 40, 200]
    content["annotations"][1]["bbox"][2] = 0
    content["annotations"][2]["image_id"] = 99
    check(content)
    assert "1 of 12 boxes reach out of their image" in caplog.text


# Checkpoints


class Foreign:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.getcwd, ()


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "backbone": nn.ModuleDict({"bottom_up": nn.Conv2d(3, 8, 1)}),
            "up": build_upsampler("LDAAQU", 8),
        }
    )


def damage(source: bytes, rng: random.Random) -> bytes:
    """Cut bytes short, change some, or put others in their place."""
    if rng.random() < 0.4:
        return source[: rng.randrange(len(source))]
    changed = bytearray(source)
    for _ in range(rng.choice([1, 3, 30])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("suffix", ["pth", "pkl", "legacy.pth"])
def test_damaged_checkpoints(tmp_path, suffix):
    rng = random.Random(f"checkpoints {suffix}")
    path = tmp_path / f"fuzz.{suffix}"
    weights = model().state_dict()
    if suffix == "pkl":
        arrays = {key: value.numpy() for key, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "a user"}, protocol=2))
    else:
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=suffix == "pth")
    assert attempt(lambda: Checkpointer(model()).load(str(path))) == "accepted"
    source = path.read_bytes()
    outcomes = Counter()
    for _ in range(CASES):
        path.write_bytes(damage(source, rng))
        target = model()
        outcome = attempt(lambda target=target: Checkpointer(target).load(str(path)))
        outcomes[outcome] += 1
        if suffix == "pth" and outcome == "accepted":  # its parts have check sums
            loaded = target.state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    report(f"damaged checkpoints ({suffix})", outcomes)
    assert outcomes["refused"] > CASES / 3


def write_other(path: Path, kind: str) -> None:
    if kind == "page":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("photo.jpg", b"x" * 1000)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(OTHER_CONTENT[kind]))
    else:
        torch.save(OTHER_CONTENT[kind], path)


OTHER_CONTENT = {
    "list": [1, 2],
    "number": 3,
    "text": {"model": "ResNet"},
    "integer keys": {"model": {1: torch.zeros(1)}},
    "numbers for tensors": {"model": {"a": 1}},
    "wrong shapes": {"model": {k: v[..., None] for k, v in model().state_dict().items()}},
    "other names": {"model": {"a": torch.zeros(1)}},
    "none": {"model": None},
    "foreign": {"model": Foreign()},
    "foreign function": {"model": model().state_dict(), "callback": os.getcwd},
    "array of foreign": {"model": {"a": np.array([Foreign()], object)}},
}


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("kind", ["page", "zip", "empty", "folder", *OTHER_CONTENT])
def test_files_that_are_no_weights(tmp_path, kind, suffix, monkeypatch):
    path = tmp_path / f"other.{suffix}"
    write_other(path, kind)
    monkeypatch.setattr(os, "getcwd", lambda: pytest.fail("it has run code"))
    assert attempt(lambda: Checkpointer(model()).load(str(path))) == "refused"


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_foreign_pickles_are_read_if_asked_for(tmp_path, suffix):
    path = tmp_path / f"foreign.{suffix}"
    weights = model().state_dict()
    content = {"__author__": "a user", "callback": os.getcwd}
    if suffix == "pkl":
        arrays = {key: value.numpy() for key, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays} | content))
    else:
        torch.save({"model": weights} | content, path)
    message = r"hold more than weights \((posix|nt)\.getcwd\).* MODEL\.TRUST_WEIGHTS True"
    with pytest.raises(InputError, match=message):
        Checkpointer(model()).load(str(path))
    extra = Checkpointer(model(), trusted=True).load(str(path))
    assert extra["callback"] is os.getcwd


# The command line


@pytest.mark.parametrize(
    "case, words",
    [
        ("config", ["SOLVER.BASE_LR"]),
        ("annotations", ["0.png", "not JSON"]),
        ("weights", ["page.pth"]),
        ("output", ["OUTPUT_DIR", "File exists"]),
    ],
)
def test_command_line(tiny_config, tmp_path, case, words):
    args = []
    if case == "config":
        args = ["SOLVER.BASE_LR", "nan"]
    elif case == "annotations":
        config = tiny_config.read_text().replace("annotations.json", "images/0.png")
        tiny_config.write_text(config)
    elif case == "weights":
        (tmp_path / "page.pth").write_text("<html></html>")
        args = ["MODEL.WEIGHTS", str(tmp_path / "page.pth"), "DATASETS.TEST", "()"]
    else:
        (tmp_path / "output").write_text("a file, where the folder would be")
    result = forked.run(ROOT / "train_net.py", "--config-file", tiny_config, *args)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stdout + result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words)
