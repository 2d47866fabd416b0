import numpy as np
import pytest
import torch
from lda_aqu.upsamplers import Sampling
from lda_aqu.visualization import draw_maps, draw_offsets, draw_points
from lda_aqu.visualization.sampling import Recording, UpsamplerRun
from lda_aqu.visualization.sampling_figures import principal_colors

GROUPS, POINTS = 2, 9


@pytest.fixture
def recording() -> Recording:
    """An image of 40 x 30, padded to 40 x 32; maps of stride 8 and 4; all offsets (1, -2)."""
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(6, *size, generator=generator) for size in ((4, 5), (8, 10)))
    offsets = torch.tensor([1.0, -2.0]).view(1, 1, 1, 2, 1, 1).expand(1, GROUPS, POINTS, 2, 8, 10)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    window = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    to_input = torch.tensor([3 / 7, 4 / 9]).view(2, 1, 1)
    regular = torch.stack((rows, columns)) + window.view(1, 1, POINTS, 2, 1, 1)
    # Of two heads; each has the channels of one group.
    weights = torch.stack((torch.arange(1.0, 10), torch.arange(9.0, 0, -1))) / 45
    weights = weights.view(1, 2, POINTS, 1, 1).expand(-1, -1, -1, 8, 10)
    sampling = Sampling(offsets, (regular + offsets) * to_input, weights)
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    run = UpsamplerRun("backbone.fpn_upsample2", 4, before, after, sampling)
    return Recording(image, (32, 40), [run, run._replace(name="nearest", sampling=None)])


def test_points_are_where_they_are_read_in_the_image(recording):
    figure = draw_points(recording, [(17, 12), (0, 29)])
    overview, first, second, colorbar = figure.axes
    assert overview.get_ylabel() == "backbone.fpn_upsample2\nstride 8 to 4"
    # The output pixel (3, 4) covers x from 16 to 20, y from 12 to 16.
    assert first.patches[0].get_bbox().bounds == (16, 12, 4, 4)
    window, sampled = (np.asarray(c.get_offsets()) for c in first.collections[:2])
    middle = POINTS // 2
    np.testing.assert_allclose(window[middle], [(4 * 4 / 9 + 0.5) * 8, (3 * 3 / 7 + 0.5) * 8])
    np.testing.assert_allclose(sampled[middle], [(2 * 4 / 9 + 0.5) * 8, (4 * 3 / 7 + 0.5) * 8])
    assert len(first.collections) == 2 * GROUPS
    expected = colorbar._colorbar.mappable.to_rgba(np.arange(1, 10) / 45)
    np.testing.assert_allclose(first.collections[1].get_facecolor(), expected)
    np.testing.assert_allclose(first.collections[3].get_facecolor(), expected[::-1])
    assert colorbar._colorbar.vmax == pytest.approx(0.2)
    for panel in (first, second):
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        for points in panel.collections:
            x, y = points.get_offsets().T
            assert (left < x).all() and (x < right).all()
            assert (top < y).all() and (y < bottom).all()


def test_offsets_are_given_by_direction_and_length(recording):
    _, directions, lengths, _ = draw_offsets(recording).axes
    (wheel,) = directions.child_axes
    assert lengths.get_xlabel() == "mean 2.24, largest 2.24"
    np.testing.assert_allclose(lengths.images[0].get_array(), 5**0.5, rtol=1e-6)
    color = np.asarray(directions.images[0].get_array()[0, 0])
    # The same colour as in the wheel 1 down for 2 to the left.
    on_wheel = np.asarray(wheel.images[0].get_array()[50 + 22, 50 - 44])
    np.testing.assert_allclose(color, on_wheel, atol=0.03)
    # The padding is not shown.
    assert directions.get_ylim() == (30, 0)


def test_maps_of_every_upsampler_are_drawn(recording):
    axes = draw_maps(recording).axes
    assert len(axes) == 6
    assert [a.get_xlabel() for a in axes[3:]] == ["", "5 x 4", "10 x 8"]


def test_principal_colors_are_the_same_for_the_same_vector():
    generator = torch.Generator().manual_seed(0)
    after = torch.randn(8, 20, 30, generator=generator)
    after[5] *= 10
    before_colors, after_colors = principal_colors(after[:, ::2, ::2], after)
    assert before_colors == pytest.approx(after_colors[::2, ::2])
    # The first component is the channel that varies most.
    ranks = after[5].flatten().argsort().argsort().double()
    first = torch.from_numpy(after_colors[..., 0]).flatten()
    correlation = torch.corrcoef(torch.stack((ranks, first)))[0, 1]
    assert abs(correlation) > 0.9


@pytest.mark.parametrize("channels, size", [(1, (4, 4)), (2, (3, 5)), (3, (1, 1))])
def test_principal_colors_of_small_maps(channels, size):
    x = torch.ones(channels, *size)
    for colors in principal_colors(x, x):
        assert colors.shape == (*size, 3)
        assert np.isfinite(colors).all()
