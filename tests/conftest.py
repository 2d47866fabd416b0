import json
import logging
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from lda_aqu.data.glyphs import generate_glyphs
from lda_aqu.ops import BACKENDS
from paths import ROOT, SHARED
from PIL import Image, ImageDraw
from pycocotools import mask as mask_util

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure() -> None:
    """Run in one thread, and processes that tests start in one each.

    Most tensors of the tests are too small for more: threads would wait for one another most of
    the time, which takes several times the CPU time.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for the fixture ``device`` on each, and for ``backend`` with those it has."""
    if "device" not in metafunc.fixturenames:
        return
    devices = ["cpu"] if metafunc.definition.get_closest_marker("cpu") else DEVICES
    if "backend" in metafunc.fixturenames:
        cases = [
            (device, name)
            for device in devices
            for name, backend in BACKENDS.items()
            if not backend.unavailable(torch.device(device))
        ]
        metafunc.parametrize("device, backend", cases, indirect=["device"])
    else:
        metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture
def device(request) -> Iterator[torch.device]:
    """The device that a test runs on, where tensors and modules are made that name no other."""
    device = torch.device(request.param)
    if device.type == "cpu":
        yield device
    else:
        with device, torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False):
            yield device


@pytest.fixture
def exact(device) -> dict[str, float]:
    """Tolerances of what is computed alike twice: none, but for a GPU's sums, in any order."""
    return {"rtol": 0, "atol": 0} if device.type == "cpu" else {}


@pytest.fixture
def inductor(device) -> None:
    """Skip where torch.compile's default backend cannot run; it finds nothing compiled before."""
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("inductor finds no C++ compiler")
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def golden():
    """Load a reference output of the published implementation, or skip."""

    def load(name: str) -> dict:
        path = SHARED / "golden" / f"{name}.pt"
        if not path.exists():
            pytest.skip(f"no reference outputs at {path}")
        return torch.load(path, map_location=torch.get_default_device())

    return load


@pytest.fixture(scope="session")
def shared_data():
    """The folder of small real datasets, or skip."""
    path = SHARED / "data"
    if not path.exists():
        pytest.skip(f"no datasets at {path}")
    return path


@pytest.fixture
def few_coco_images(shared_data, tmp_path, monkeypatch) -> None:
    """Make four real images the whole of coco_2017_val."""
    real, part = shared_data / "coco", tmp_path / "coco"
    (part / "annotations").mkdir(parents=True)
    (part / "val2017").symlink_to(real / "val2017")
    content = json.loads((real / "annotations" / "instances_val2017.json").read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (part / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory) -> Path:
    """A dataset in COCO format: 6 images of 96 x 64 with rectangles and discs as RLE masks.

    images/{0..5}.png, annotations.json; category ids 3 (box) and 7 (disc).
    """
    root = tmp_path_factory.mktemp("tiny_coco")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(6):
        picture = Image.fromarray(rng.integers(60, 120, (64, 96, 3), dtype=np.uint8))
        for kind in (3, 7):
            x, y = int(rng.integers(2, 60)), int(rng.integers(2, 30))
            w, h = int(rng.integers(16, 32)), int(rng.integers(16, 32))
            mask = Image.new("L", picture.size)
            shape = (x, y, x + w - 1, y + h - 1)
            for canvas, ink in (
                (picture, (230, 40, 40) if kind == 3 else (40, 40, 230)),
                (mask, 1),
            ):
                draw = ImageDraw.Draw(canvas)
                (draw.rectangle if kind == 3 else draw.ellipse)(shape, fill=ink)
            rle = mask_util.encode(np.asfortranarray(np.array(mask)))
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": [x, y, w, h],
                    "area": int(np.array(mask).sum()),
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
        picture.save(root / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 96, "height": 64})
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]
    (root / "annotations.json").write_text(
        json.dumps(
            {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        )
    )
    return root


@pytest.fixture
def tiny_config(tiny_coco, tmp_path) -> Iterator[Path]:
    """A config file that trains a small Mask R-CNN on :func:`tiny_coco`, from YAML alone."""
    path = tmp_path / "tiny.yaml"
    path.write_text(f"""
_BASE_: "{ROOT}/configs/Small/Base-RCNN-R18-FPN.yaml"
MODEL:
  DEVICE: "cpu"
  MASK_ON: True
  RESNETS: {{DEPTH: 50, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 16}}
  FPN: {{OUT_CHANNELS: 16}}
  ANCHOR_GENERATOR:
    SIZES: [[8], [16], [32], [64], [128]]
  RPN:
    PRE_NMS_TOPK_TRAIN: 50
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TRAIN: 30
    POST_NMS_TOPK_TEST: 30
  ROI_HEADS: {{NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
DATASETS:
  TRAIN: ("tiny",)
  TEST: ("tiny",)
  COCO_FORMAT:
    tiny: {{ANNOTATIONS: "{tiny_coco}/annotations.json", IMAGES: "{tiny_coco}/images"}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 4, WARMUP_ITERS: 2, BASE_LR: 0.01, CHECKPOINT_PERIOD: 2}}
DATALOADER: {{NUM_WORKERS: 0}}
OUTPUT_DIR: "{tmp_path}/output"
""")
    yield path
    for catalog in (DatasetCatalog, MetadataCatalog):  # loading the config registers it
        catalog.pop("tiny", None)


@pytest.fixture(scope="session")
def tiny_glyphs(tmp_path_factory) -> Path:
    """The folder of a generated dataset: three images of 64 pixels in train, one in val."""
    root = tmp_path_factory.mktemp("tiny") / "glyphs"
    generate_glyphs(root, 3, 1, size=64, seed=0)
    return root


@pytest.fixture
def run_tool(monkeypatch) -> Iterator[Callable[..., int]]:
    """Run a script in tools/ as a command, (name, *arguments); return its exit status."""
    # A tool sets up logging, and threads, for a process of its own.
    threads, logger = torch.get_num_threads(), logging.getLogger("lda_aqu")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)

    def run(name: str, *args: object) -> int:
        tool = str(ROOT / "tools" / name)
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    yield run
    torch.set_num_threads(threads)
