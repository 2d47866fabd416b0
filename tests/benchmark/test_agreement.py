import pytest
import torch
from lda_aqu.benchmark.agreement import agreement_table
from lda_aqu.benchmark.implementations import Implementation, select_implementations
from lda_aqu.benchmark.settings import DTYPES, Setting, Step

STEP = Step("small", 32, (7, 9), (14, 18))


def check(**setting):
    implementations = select_implementations(["LDAAQU"], "cpu")
    return agreement_table([STEP], implementations, Setting(**setting)).rows


@pytest.fixture
def spoil(monkeypatch):
    """Pass what every module but the published algorithm puts out through a function."""

    def spoil(change) -> None:
        build = Implementation.build

        def build_spoiled(self, channels):
            module = build(self, channels)
            if not self.is_reference:
                module.register_forward_hook(lambda module, inputs, output: change(output))
            return module

        monkeypatch.setattr(Implementation, "build", build_spoiled)

    return spoil


@pytest.mark.parametrize(
    "setting",
    [
        *({"dtype": dtype} for dtype in DTYPES),
        {"autocast": "bfloat16", "batch_size": 2},
        {"memory_format": "channels_last"},
    ],
    ids=str,
)
def test_every_backend_agrees_with_the_published_algorithm(setting):
    rows = check(**setting)
    dtype = setting.get("autocast") or setting.get("dtype", "float32")
    assert {row["dtype"] for row in rows} == {"float64", dtype}
    assert {row["agrees"] for row in rows} == {"yes"}, rows


def same_value_other_gradient(output):
    return output.detach() + 1.1 * (output - output.detach())


def one_wrong_pixel(output):
    mask = torch.zeros_like(output)
    mask[0, :, -1, -1] = 0.01
    return output + mask


@pytest.mark.parametrize(
    "change", [one_wrong_pixel, same_value_other_gradient, lambda output: output * torch.nan]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_wrong_is_found(spoil, change, dtype):
    spoil(change)
    assert {row["agrees"] for row in check(dtype=dtype)} == {"NO"}


def test_what_is_wrong_in_one_dtype_alone_is_found(spoil):
    """As kernels are that are compiled for each dtype."""
    spoil(lambda output: output * (1.001 if output.dtype == torch.float32 else 1))
    assert {row["dtype"] for row in check() if row["agrees"] == "NO"} == {"float32"}
