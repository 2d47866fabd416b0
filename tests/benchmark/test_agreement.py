import pytest
import torch
from lda_aqu.benchmark.agreement import check_agreement, published_results
from lda_aqu.benchmark.implementations import Implementation, select_implementations
from lda_aqu.benchmark.shapes import Step
from lda_aqu.benchmark.workload import DTYPES, Setting, Workload

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
    setting = Setting(**setting)
    expected = published_results(Workload(published, STEP, setting))
    return [check_agreement(Workload(backend, STEP, setting), expected) for backend in backends]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_every_backend_agrees_with_the_published_algorithm(dtype, memory_format):
    agreements = check(dtype=dtype, memory_format=memory_format)
    assert agreements
    assert all(agreement.holds for agreement in agreements), [*map(str, agreements)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_wrong_pixel_is_found(monkeypatch, dtype):
    def shift_one_pixel(output):
        mask = torch.zeros_like(output)
        mask[0, :, -1, -1] = 0.01
        return output + mask

    spoil(monkeypatch, shift_one_pixel)
    (agreement, *_) = check(dtype=dtype)
    assert not agreement.holds
    assert agreement.output_error > 1e-5 > agreement.gradient_error


def test_wrong_gradients_are_found(monkeypatch):
    def same_value_other_gradient(output):
        return output.detach() + 1.01 * (output - output.detach())

    spoil(monkeypatch, same_value_other_gradient)
    (agreement, *_) = check()
    assert not agreement.holds
    assert agreement.gradient_error == pytest.approx(0.01, rel=0.1)


def test_a_nan_is_no_agreement(monkeypatch):
    spoil(monkeypatch, lambda output: output * torch.nan)
    (agreement, *_) = check()
    assert not agreement.holds
