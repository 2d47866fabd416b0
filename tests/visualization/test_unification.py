from lda_aqu.visualization.unification import OUTPUT_PIXELS, draw_unification
from PIL import Image


def test_the_figure_shows_what_every_upsampler_reads_and_makes(tmp_path):
    figure = draw_unification()
    figure.savefig(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 1000

    inputs, outputs = figure.axes[:4], figure.axes[4:]
    dots = [len(axes.collections) for axes in inputs]
    one = len(OUTPUT_PIXELS)
    assert dots[:3] == [one, one, 4 * one] and dots[3] > dots[2]
    nearest, bilinear, over_pixels, carafe = (axes.images[0].get_array() for axes in outputs)
    assert abs(bilinear - over_pixels).max() < 1e-10
    # The same edge, sharper: fewer values between dark and bright.
    between = [((y > 0.3) & (y < 0.7)).sum() for y in (nearest, bilinear, carafe)]
    assert between[2] < between[1] / 4
