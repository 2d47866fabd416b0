"""What LazyConfigs need to name upsamplers: functions of plain values."""

from collections.abc import Callable
from functools import partial

from ..upsamplers import Upsampler, build_upsampler


def upsampler_factory(name: str, in_channels: int, **options: object) -> Callable[..., Upsampler]:
    """A ``make_upsampler`` of :class:`UpsamplerFPN` and the heads, which call it for each step.

    Under LazyCall: ``make_upsampler=L(upsampler_factory)(name="LDAAQU", in_channels=256)``. The
    arguments are those of :func:`~lda_aqu.build_upsampler`, of which a call may give the scale
    factor; what does not fit raises InputError in that call.
    """
    return partial(build_upsampler, name, in_channels, **options)
