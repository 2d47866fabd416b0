import pytest
import torch
from lda_aqu.benchmark.agreement import check_agreement
from lda_aqu.benchmark.implementations import Implementation, select_implementations
from lda_aqu.benchmark.shapes import Step
from lda_aqu.benchmark.workload import DTYPES, Setting

STEP = Step("small", 32, (7, 9), (14, 18))


def spoil(monkeypatch, change) -> None:
    """Pass what every module but the published algorithm puts out through ``change``."""
    build = Implementation.build

    def build_spoiled(self, channels):
        module = build(self, channels)
        if not self.reference:
            module.register_forward_hook(lambda module, inputs, output: change(output))
        return module

    monkeypatch.setattr(Implementation, "build", build_spoiled)


def check(**setting):
    published, *backends = select_implementations(["LDAAQU"], "cpu")
    return check_agreement(published, backends, STEP, Setting(**setting))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_every_backend_agrees_with_the_published_algorithm(dtype, memory_format):
    agreements = check(dtype=dtype, memory_format=memory_format)
    assert {agreement.dtype for agreement in agreements} == {"float64", dtype}
    assert all(agreement.holds for agreement in agreements), [*map(str, agreements)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_wrong_pixel_is_found(monkeypatch, dtype):
    def shift_one_pixel(output):
        mask = torch.zeros_like(output)
        mask[0, :, -1, -1] = 0.01
        return output + mask

    spoil(monkeypatch, shift_one_pixel)
    agreements = check(dtype=dtype)
    assert not any(agreement.holds for agreement in agreements)
    for agreement in agreements:
        assert agreement.errors[0] > 1e-4
        assert agreement.errors[1] <= agreement.allowed[1]


def test_wrong_gradients_are_found(monkeypatch):
    def same_value_other_gradient(output):
        return output.detach() + 1.1 * (output - output.detach())

    spoil(monkeypatch, same_value_other_gradient)
    agreements = check()
    assert not any(agreement.holds for agreement in agreements)
    assert agreements[0].errors[1] == pytest.approx(0.1, rel=0.1)


def test_a_nan_is_no_agreement(monkeypatch):
    spoil(monkeypatch, lambda output: output * torch.nan)
    assert not any(agreement.holds for agreement in check())


def test_what_is_wrong_in_one_dtype_alone_is_found(monkeypatch):
    """As kernels are that are compiled for each dtype."""
    spoil(monkeypatch, lambda output: output * (1.001 if output.dtype == torch.float32 else 1))
    assert {a.dtype for a in check(dtype="float32") if not a.holds} == {"float32"}
