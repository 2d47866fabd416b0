import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from lda_aqu import add_lda_aqu_config
from lda_aqu.engine import load_config
from lda_aqu.errors import InputError


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.CARAFE.KERNEL", "3"],
            "MODEL.CARAFE.KERNEL'; did you mean MODEL.CARAFE.KERNEL_SIZE",
        ),
        (["MODEL.LDAAQU.REDUCTION", "2"], "MODEL.LDAAQU'; did you mean MODEL.LDA_AQU"),
        (["MODEL.FPN.OUT_CHANNELS", "many"], "MODEL.FPN.OUT_CHANNELS"),
        (["MODEL.FPN.OUT_CHANNELS"], "KEY VALUE pairs.*'MODEL.FPN.OUT_CHANNELS' has no value"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE 'gpu' is not a device"),
    ],
)
def test_bad_options(opts, message):
    with pytest.raises(InputError, match=message):
        load_config("", opts)


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {FPN: {UPSAMPLR: Nearest}}", "did you mean MODEL.FPN.UPSAMPLER"),
        ("MODEL: [", "while parsing"),
        ("_BASE_: missing.yaml", "missing.yaml"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(str(path), [])


def test_aliases_and_names_that_detectron2_knows_are_no_fault(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(
        "DATASETS: {TRAIN: &names [a], TEST: *names}\n"
        "DATALOADER: {SAMPLER_TRAIN: RandomSubsetTrainingSampler}\n"
    )
    cfg = load_config(str(path), ["MODEL.TRUST_WEIGHTS", "True"])
    assert cfg.DATASETS.TEST == ("a",) and cfg.MODEL.TRUST_WEIGHTS


def test_a_base_is_checked_too(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\nSEED: 2")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml")
    with pytest.raises(InputError, match=r"base\.yaml: SEED is twice"):
        load_config(str(tmp_path / "top.yaml"), [])


def test_missing_file():
    with pytest.raises(InputError, match=r"'no\.yaml' does not exist"):
        load_config("no.yaml", [])


def test_device_is_chosen_and_logged(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with caplog.at_level("INFO"):
        assert load_config("", []).MODEL.DEVICE == "cpu"
    assert "Running on cpu (MODEL.DEVICE is auto, this machine has no usable GPU)" in caplog.text
    with pytest.raises(InputError, match="no usable GPU; use MODEL.DEVICE cpu"):
        load_config("", ["MODEL.DEVICE", "cuda"])


def test_a_gpu_that_is_not_there_and_one_that_is(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    with pytest.raises(InputError, match="'cuda:2': this machine has 2 usable GPUs, numbered from"):
        load_config("", ["MODEL.DEVICE", "cuda:2"])
    load_config("", ["MODEL.DEVICE", "cuda:1"])
    assert chosen == [torch.device("cuda:1")]


def test_own_dataset_is_registered_once(tiny_config, tiny_coco):
    for _ in range(2):
        cfg = load_config(str(tiny_config), [])
    assert cfg.DATASETS.TRAIN == ("tiny",)
    assert len(DatasetCatalog.get("tiny")) == 6
    assert MetadataCatalog.get("tiny").thing_classes == ["box", "disc"]


def test_own_dataset_may_not_take_a_name(tmp_path, tiny_coco):
    path = tmp_path / "own.yaml"
    path.write_text(
        "DATASETS: {COCO_FORMAT: {coco_2017_train: "
        f"{{ANNOTATIONS: {tiny_coco}/annotations.json, IMAGES: {tiny_coco}/images}}}}}}"
    )
    with pytest.raises(InputError, match=r"coco_2017_train: a dataset of that name exists"):
        load_config(str(path), [])


def test_the_config_that_a_run_writes_is_read_with_this_projects_keys(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(load_config("", ["MODEL.FPN.UPSAMPLER", "CARAFE"]).dump())
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_lda_aqu_config(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.FPN.UPSAMPLER == "CARAFE"
