"""The formats of exported models: how a file of each is written, and how it is run."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops import standard_operators

Run = Callable[[Tensor], dict[str, Tensor]]

# From 16 on there is GridSample, from 17 on LayerNormalization. At 20 GridSample is written in a
# form that TensorRT reads wrongly.
ONNX_OPSET = 17

METADATA = "lda_aqu.json"
"""Where a file says what its outputs are, and how images are prepared for it."""

_DYNAMIC_AXES = {
    "image": {1: "height", 2: "width"},
    "boxes": {0: "detections"},
    "scores": {0: "detections"},
    "classes": {0: "detections"},
    "masks": {0: "detections"},
    "sem_seg": {1: "height", 2: "width"},
}


class Format(NamedTuple):
    """A format of files."""

    suffix: str
    write: Callable[[nn.Module, Tensor, bool, dict[str, Any], BinaryIO], None]
    """Writes a TensorModel, traced with an image (3, H, W); for images of any size if the bool
    says so; with metadata, of which "outputs" are the names of what the model returns."""
    read: Callable[[str], tuple[Run, dict[str, Any]]]
    """Reads a file: what runs it, from an image to the outputs by their names; the metadata."""
    packages: tuple[str, ...] = ()
    """What must be installed for it, beside PyTorch."""


def check_packages(format: str) -> None:
    """Raise InputError, naming them, unless the packages for a format are installed."""
    missing = [name for name in FORMATS[format].packages if find_spec(name) is None]
    if missing:
        raise InputError(f"format {format} needs packages: pip install {' '.join(missing)}")


class _InOrder(nn.Module):
    """A TensorModel that returns its outputs as a tuple, without their names."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(image)
        return tuple(outputs[name] for name in self.names)


def _write_onnx(
    model: nn.Module, image: Tensor, dynamic: bool, metadata: dict[str, Any], file: BinaryIO
) -> None:
    import onnx

    names = metadata["outputs"]
    buffer = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            _InOrder(model, names),
            (image,),
            buffer,
            dynamo=False,  # Detectron2's detectors branch on values, which the other cannot follow
            opset_version=ONNX_OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={
                name: {axis: size for axis, size in axes.items() if dynamic or size == "detections"}
                for name, axes in _DYNAMIC_AXES.items()
                if name in ("image", *names)
            },
        )
    exported = onnx.load_model_from_string(buffer.getvalue())
    onnx.checker.check_model(exported)
    onnx.helper.set_model_props(exported, {METADATA: json.dumps(metadata)})
    file.write(exported.SerializeToString())


def _read_onnx(path: str) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])

    def run(image: Tensor) -> dict[str, Tensor]:
        arrays = session.run(metadata["outputs"], {"image": image.numpy()})
        return dict(zip(metadata["outputs"], map(torch.from_numpy, arrays), strict=True))

    return run, metadata


def _write_torchscript(
    model: nn.Module, image: Tensor, dynamic: bool, metadata: dict[str, Any], file: BinaryIO
) -> None:
    with _quiet():
        # Not strict, or it returns no dict.
        traced = torch.jit.trace(model, (image,), check_trace=False, strict=False)
        torch.jit.save(traced, file, {METADATA: json.dumps(metadata)})


def _read_torchscript(path: str) -> tuple[Run, dict[str, Any]]:
    files = {METADATA: ""}
    with _quiet():
        run = torch.jit.load(path, map_location="cpu", _extra_files=files)
    return run, json.loads(files[METADATA])


def _write_pt2(
    model: nn.Module, image: Tensor, dynamic: bool, metadata: dict[str, Any], file: BinaryIO
) -> None:
    # Sizes that are symbols would take minutes, and be held to multiples of what is padded to.
    with _quiet(), standard_operators():
        program = torch.export.export(model, (image,), strict=False)
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def _read_pt2(path: str) -> tuple[Run, dict[str, Any]]:
    files = {METADATA: ""}
    with _quiet(), open(path, "rb") as file:
        run = torch.export.load(file, extra_files=files).module()
    return run, json.loads(files[METADATA])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters warn of: sizes that are constants, and that they are deprecated.

    Whether a constant is one is seen where the file is checked at another size. Errors are raised
    all the same; the graphs that are printed with them are not shown.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxruntime")),
    "torchscript": Format(".ts", _write_torchscript, _read_torchscript),
    "pt2": Format(".pt2", _write_pt2, _read_pt2),
}
"""The formats by their names."""
