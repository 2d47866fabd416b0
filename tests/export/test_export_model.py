"""Models are exported through the tool, and predict what they did in PyTorch."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from lda_aqu.engine import load_config, load_model
from lda_aqu.errors import InputError
from lda_aqu.export import FORMATS, ExportedModel
from paths import ROOT
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# LDA-AQU of a single point: a graph of fewer operators, which is exported in less time.
ONE_POINT = ["MODEL.FPN.UPSAMPLER", "LDAAQU", "MODEL.LDA_AQU.KERNEL_SIZE", 1]
by_trace = pytest.mark.parametrize(
    "format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)]
)


class Exported:
    """A model of random weights, the tool that exports it, and images of several sizes."""

    def __init__(self, run_tool, config: Path, options: list, folder: Path, images: Path) -> None:
        self.run_tool, self.config, self.folder = run_tool, config, folder
        self.options = [str(o) for o in (*options, "MODEL.DEVICE", "cpu")]
        self.images = [str(images / f"{n}.png") for n in range(2)]
        torch.manual_seed(0)
        model = build_model(self._load_config())
        self.weights = folder / "random.pth"
        torch.save({"model": model.state_dict()}, self.weights)

    def _load_config(self):
        return load_config(str(self.config), self.options)

    def run(self, format: str, *arguments: object, more: list | None = None) -> int:
        """Run the tool; return its exit status."""
        self.file = self.folder / f"model{FORMATS[format].suffix}"
        return self.run_tool(
            "export_model.py",
            *("--config-file", self.config, "--weights", self.weights, "--format", format),
            *("--output", self.file, *arguments, *self.options, *(more or [])),
        )

    def model(self, more: list | None = None) -> nn.Module:
        self.options += more or []
        cfg = self._load_config()
        cfg.MODEL.WEIGHTS = str(self.weights)
        return load_model(cfg)

    def inputs(self, side: int) -> list[dict]:
        """The images, the shorter side resized to this, to be predicted for at another size."""
        cfg = self._load_config()
        cfg.INPUT.MIN_SIZE_TEST = side
        mapper = DatasetMapper(cfg, is_train=False)
        return [mapper({"file_name": f}) | {"height": 70, "width": 100} for f in self.images]

    def check(self, model: nn.Module, side: int) -> list[dict]:
        """Compare the file's predictions with the model's; return the latter."""
        exported, results = ExportedModel(self.file), []
        with torch.no_grad():
            for one in self.inputs(side):
                (actual,), (expected,) = exported([one]), model([one])
                assert actual.keys() == expected.keys()
                if "instances" in expected:
                    a, b = actual["instances"].get_fields(), expected["instances"].get_fields()
                    assert a.keys() == b.keys()
                    torch.testing.assert_close(a["pred_boxes"].tensor, b["pred_boxes"].tensor)
                    torch.testing.assert_close(a["scores"], b["scores"])
                    assert torch.equal(a["pred_classes"], b["pred_classes"])
                    if "pred_masks" in b:
                        assert a["pred_masks"].shape[1:] == (70, 100)
                        wrong = (a["pred_masks"] != b["pred_masks"]).sum()
                        assert wrong <= 1e-3 * b["pred_masks"].numel()
                if "sem_seg" in expected:
                    torch.testing.assert_close(
                        actual["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-4
                    )
                if "panoptic_seg" in expected:
                    a, b = actual["panoptic_seg"], expected["panoptic_seg"]
                    assert (a[0] != b[0]).float().mean() < 0.01
                    kinds = [[(s["id"], s["category_id"]) for s in x[1]] for x in (a, b)]
                    assert kinds[0] == kinds[1]
                results.append(expected)
        return results


@pytest.fixture
def mask_rcnn(run_tool, tiny_config, tiny_coco, tmp_path) -> Exported:
    options = [*ONE_POINT, "TEST.DETECTIONS_PER_IMAGE", 8]
    return Exported(run_tool, tiny_config, options, tmp_path, tiny_coco / "images")


@pytest.fixture
def semantic(run_tool, tiny_coco, tmp_path) -> Exported:
    options = [*ONE_POINT, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "INPUT.MIN_SIZE_TEST", 64]
    config = ROOT / "configs/Small/upernet_R_18_camvid_lda_aqu.yaml"
    return Exported(run_tool, config, options, tmp_path, tiny_coco / "images")


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_mask_rcnn(mask_rcnn, format, tmp_path, monkeypatch):
    """It finds something in one of two images, and is right about the other, too."""
    model = mask_rcnn.model(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    with torch.no_grad():
        tops = [model([one])[0]["instances"].scores.max() for one in mask_rcnn.inputs(64)]
    more = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(float(sum(tops) / 2))]
    finds, finds_none = (mask_rcnn.images[tops.index(top)] for top in (max(tops), min(tops)))
    assert mask_rcnn.run(format, "--image", finds_none, more=more) == 2
    assert not mask_rcnn.file.exists()
    evaluated = ["--evaluate"] if format == "torchscript" else []
    assert mask_rcnn.run(format, "--image", finds, *evaluated, more=more) == 0
    model = mask_rcnn.model(more)
    found = [len(result["instances"]) for result in mask_rcnn.check(model, 64)]
    assert max(found) > 0 == min(found)
    mask_rcnn.check(model, 81)
    if format == "onnx":
        check_graph(mask_rcnn.file)
        shutil.copy(finds, tmp_path / "photo.jpg")
        monkeypatch.chdir(tmp_path)
        for resized in (True, False):
            if not resized:
                set_metadata(Path("model.onnx"), min_size=0)
            names: dict = {}
            exec(consumer(), names)
            assert len(names["boxes"]) == len(names["scores"]) == max(found)
    else:
        file = tmp_path / "output/inference/coco_instances_results.json"
        results = json.loads(file.read_text())
        seen = {result["image_id"] for result in results}
        assert int(Path(finds).stem) in seen and int(Path(finds_none).stem) not in seen


def consumer() -> str:
    """The code with which the page on exported files runs one without this project."""
    page = (ROOT / "docs/export.md").read_text()
    block, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert "lda_aqu" not in block.replace("lda_aqu.json", "")
    return block


def set_metadata(file: Path, **changes: object) -> None:
    exported = onnx.load(file)
    (entry,) = exported.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save(exported, file)


def check_graph(file: Path) -> None:
    """Other runtimes read it; from opset 20 on TensorRT reads GridSample wrongly."""
    exported = onnx.load(file)
    (opset,) = exported.opset_import
    assert opset.domain == ""
    assert 16 <= opset.version <= 18
    graph = exported.graph
    assert "GridSample" in {node.op_type for node in graph.node}
    (image,) = graph.input
    size = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert size == [3, "height", "width"]
    assert [o.name for o in graph.output] == ["boxes", "scores", "classes", "masks"]
    (metadata,) = exported.metadata_props
    assert json.loads(metadata.value)["channels"] == "BGR"


@by_trace
def test_panoptic_fpn(run_tool, tiny_coco, tmp_path, format):
    options = [
        *(*ONE_POINT, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "MODEL.ROI_BOX_HEAD.CONV_DIM", 16),
        *("TEST.DETECTIONS_PER_IMAGE", 8, "INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0),
    ]
    config = ROOT / "configs/Small/panoptic_fpn_R_18_glyphs_lda_aqu.yaml"
    panoptic = Exported(run_tool, config, options, tmp_path, tiny_coco / "images")
    assert panoptic.run(format, "--image", panoptic.images[0]) == 0
    assert all(result["panoptic_seg"][1] for result in panoptic.check(panoptic.model(), 81))


@by_trace
def test_retinanet(run_tool, tiny_coco, tmp_path, format):
    options = [
        *(*ONE_POINT, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.001, "TEST.DETECTIONS_PER_IMAGE", 8),
        *("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20, "INPUT.MIN_SIZE_TEST", 64),
    ]
    config = ROOT / "configs/COCO-Detection/retinanet_R_50_FPN_1x_lda_aqu.yaml"
    retinanet = Exported(run_tool, config, options, tmp_path, tiny_coco / "images")
    assert retinanet.run(format, "--image", retinanet.images[0]) == 0
    results = retinanet.check(retinanet.model(), 81)
    assert all(len(result["instances"]) for result in results)


def test_semantic_segmentor_of_any_size(semantic):
    value_range = ["INPUT.VALUE_RANGE", "[0, 4095]"]
    assert semantic.run("onnx", "--image", semantic.images[0], more=value_range) == 0
    assert ExportedModel(semantic.file).metadata["value_range"] == [0, 4095]
    semantic.check(semantic.model(), 81)


@pytest.mark.parametrize(
    "format, error",
    [
        ("onnx", onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument),
        pytest.param("pt2", AssertionError, marks=pytest.mark.slow),
    ],
)
def test_semantic_segmentor_of_one_size(semantic, format, error, monkeypatch, capsys):
    assert semantic.run(format, "--image", semantic.images[0], "--size", 64, 96) == 0
    semantic.check(semantic.model(), 64)
    with pytest.raises(error, match=r"64"):
        ExportedModel(semantic.file)([{"image": torch.zeros(3, 96, 64)}])
    if format == "pt2":
        program = torch.export.load(semantic.file)
        calls = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
        assert calls
        assert all(name.startswith(("aten.", "<built-in function")) for name in calls)
        return

    # As if it had been exported for any size.
    content = semantic.file.read_bytes()
    semantic.file.unlink()
    bound = FORMATS["onnx"]._replace(write=lambda *others: others[-1].write(content))
    monkeypatch.setitem(FORMATS, "onnx", bound)
    assert semantic.run("onnx", "--image", semantic.images[0]) == 2
    assert "fails on a part of it, turned, 96 x 48" in capsys.readouterr().err
    assert not semantic.file.exists()


def test_disagreement_leaves_nothing(mask_rcnn, monkeypatch, capsys):
    """The image of the check is not the one traced with."""
    write = FORMATS["torchscript"].write

    def write_another(model, *others) -> None:
        other = copy.deepcopy(model)
        other.model.roi_heads.mask_head.predictor.bias.data += 0.5
        write(other, *others)

    another = FORMATS["torchscript"]._replace(write=write_another)
    monkeypatch.setitem(FORMATS, "torchscript", another)
    file = mask_rcnn.folder / "model.ts"
    file.write_bytes(b"before")
    assert mask_rcnn.run("torchscript") == 2
    assert "masks differ from PyTorch's by 0." in capsys.readouterr().err
    assert file.read_bytes() == b"before"
    assert not list(mask_rcnn.folder.glob("*.unfinished"))


def test_a_folder_is_no_output(mask_rcnn, capsys):
    assert mask_rcnn.run("torchscript", "--output", mask_rcnn.folder) == 2
    assert "is a folder: name a file in it" in capsys.readouterr().err


def test_missing_packages_are_named(mask_rcnn, monkeypatch, capsys):
    monkeypatch.setattr("lda_aqu.export.formats.find_spec", lambda name: None)
    assert mask_rcnn.run("onnx") == 2
    assert "pip install onnx onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    "format, arguments, more, message",
    [
        ("onnx", [], ["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "GeneralizedRCNN, Panoptic"),
        ("onnx", [], ["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON"),
        ("pt2", [], [], "GeneralizedRCNN cannot be exported to pt2"),
        ("pt2", [], ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"], "--size"),
        ("torchscript", ["--size", 64, 64], [], "TorchScript file takes images of any size"),
        ("onnx", ["--size", 64, 8], [], "64 x 8"),
        ("onnx", ["--image", "none.png"], [], "none.png"),
        ("onnx", [], ["DATASETS.TEST", "()"], "--image"),
        ("onnx", [], ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"], "--image"),
        ("onnx", ["--weights", "none.pth"], [], "none.pth"),
    ],
)
def test_what_cannot_be_exported_is_refused(mask_rcnn, format, arguments, more, message, capsys):
    assert mask_rcnn.run(format, *arguments, more=more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert message in line
    assert not mask_rcnn.file.exists()


def test_a_suffix_that_is_no_format(tmp_path):
    with pytest.raises(ValueError, match=r"\.onnx, \.ts, \.pt2"):
        ExportedModel(tmp_path / "model.bin")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_read(format, tmp_path):
    file = tmp_path / f"model{FORMATS[format].suffix}"
    file.write_bytes(b"no model")
    with pytest.raises(InputError, match=rf"^the {format} file '.*{file.name}' cannot be read: "):
        ExportedModel(file)
