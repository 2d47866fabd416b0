import pytest
import torch
from lda_aqu import LDAAQU, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import LAU, upsampler_options
from torch.nn import functional as F


def test_parameters_at_256_channels():
    counts = {"LAU": 33_856, "LDAAQU": 39_410, "LDAAQUStar": 10_250, "GuidedLDAAQU": 39_922}
    for name, count in counts.items():
        assert sum(p.numel() for p in build_upsampler(name, 256).parameters()) == count


def test_is_lda_aqu_without_offsets():
    torch.manual_seed(0)
    deformed, plain = LDAAQU(32), LAU(32)
    deformed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 32, 5, 7)  # the offsets of a new LDAAQU are zero
    torch.testing.assert_close(plain(x), deformed(x))


def test_star_is_lda_aqu_with_few_channels():
    star, same = build_upsampler("LDAAQUStar", 64), LDAAQU(64, reduction=16)
    same.load_state_dict(star.state_dict())
    torch.nn.init.normal_(same.conv_offset[3].weight)
    star.load_state_dict(same.state_dict())
    x = torch.randn(1, 64, 5, 7)
    torch.testing.assert_close(star(x), same(x), rtol=0, atol=0)


def test_guided_queries_see_the_guide_alone():
    """With the input's own query given as the guide's, the guided one is the unguided."""
    torch.manual_seed(0)
    module, guided = LDAAQU(32, scale_factor=1), build_upsampler("GuidedLDAAQU", 32)
    torch.nn.init.normal_(module.conv_offset[3].weight)
    guided.load_state_dict(module.state_dict(), strict=False)
    x = torch.randn(2, 32, 6, 5)
    torch.testing.assert_close(guided(x, x), module(x))
    assert not guided(x, torch.randn_like(x)).allclose(module(x))
    assert upsampler_options(type(guided)) == upsampler_options(LDAAQU)


@pytest.mark.parametrize("name", ["LAU", "LDAAQU", "GuidedLDAAQU"])
@pytest.mark.parametrize("options", [{}, {"num_heads": 2}, {"reduction": 2}, {"kernel_size": 5}])
def test_starts_close_to_bilinear_if_asked(name, options):
    torch.manual_seed(0)
    module = build_upsampler(name, 64, init="bilinear", **options)
    x = torch.randn(1, 64, 12, 9)
    expected = F.interpolate(x, (24, 18), mode="bilinear", align_corners=True)
    y = module(x, torch.randn(1, 64, 24, 18)) if name == "GuidedLDAAQU" else module(x)
    start = build_upsampler(name, 64, **options)
    y_window = start(x, torch.randn(1, 64, 24, 18)) if name == "GuidedLDAAQU" else start(x)

    def distance(actual: torch.Tensor) -> float:
        return ((actual - expected).norm() / expected.norm()).item()

    assert distance(y) < 0.1 < 0.4 < distance(y_window)
    if name == "GuidedLDAAQU":
        wide = build_upsampler(name, 64, init="bilinear", guide_channels=96, **options)
        assert distance(wide(x, torch.randn(1, 96, 24, 18))) < 0.2


def test_bad_initializations_raise():
    with pytest.raises(InputError, match="init 'nearest': allowed are window, bilinear"):
        LAU(16, init="nearest")
    with pytest.raises(InputError, match="init 'bilinear' needs position_bias"):
        LAU(16, init="bilinear", position_bias=False)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_bias_table_keeps_its_axes_in_channels_last(num_heads):
    module = LAU(16, num_heads=num_heads)
    table, values = module.relative_position_bias_table, module.state_dict()
    values = {key: value.clone() for key, value in values.items()}
    module(torch.randn(1, 16, 3, 4)).sum().backward()
    gradient = table.grad.clone()
    module.to(memory_format=torch.channels_last)
    assert module.proj_q.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.relative_position_bias_table is table  # an optimizer goes on with it
    assert torch.equal(table.grad, gradient) and table.is_contiguous()
    torch.testing.assert_close(module.state_dict(), values, rtol=0, atol=0)
    assert module.double().relative_position_bias_table.shape == gradient.shape
