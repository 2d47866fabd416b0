"""Every upsampler trains in the pyramid, and some in every head: some steps on a batch."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import lda_aqu.modeling  # noqa: F401  (registers the heads)
import pytest
import test_mask_head
import test_semantic_fpn
import test_upernet
import torch
from detectron2.utils.events import EventStorage
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.modeling import UpsamplerFPN
from lda_aqu.upsamplers import Upsampler
from lda_aqu.upsamplers.bilinear import Bilinear
from test_fpn import Given
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 32


def pyramid(
    name: str, levels: Sequence[int] = (2, 3, 4, 5), extra_levels: int = 0
) -> tuple[nn.Module, Callable[[], Tensor]]:
    maps = [torch.randn(1, 8, 32 // 2**level, 48 // 2**level) for level in range(4)]
    features = [f"res{level}" for level in levels]
    channels = CHANNELS * 4 if name == "LDAAQUStar" else CHANNELS
    fpn = UpsamplerFPN(
        Given(maps),
        features,
        channels,
        lambda: build_upsampler(name, channels),
        extra_levels=extra_levels,
    )
    finest = f"p{levels[0]}"
    target = torch.randn(1, channels, *maps[levels[0] - 2].shape[2:])
    return fpn, lambda: F.mse_loss(fpn(None)[finest], target)


def retinanet_pyramid(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """P3 to P7, all of them in the top-down path."""
    return pyramid(name, levels=(3, 4, 5), extra_levels=2)


def semantic_fpn(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    keys = {"UPSAMPLER": name, "LOGITS_UPSAMPLER": name, "NUM_CLASSES": 32}
    opts = [part for key, value in keys.items() for part in (f"MODEL.SEM_SEG_HEAD.{key}", value)]
    head = test_semantic_fpn.build(test_semantic_fpn.OURS, *opts)
    features, targets = test_semantic_fpn.inputs(64, 64)
    return head, lambda: head(features, targets)[1]["loss_sem_seg"]


def upernet(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    head = test_upernet.build(
        *["MODEL.SEM_SEG_HEAD.UPSAMPLER", name, "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER", name],
        *["MODEL.UPERNET.FUSION_UPSAMPLER", name, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 32],
    )
    features, targets = test_upernet.inputs(64, 64)
    return head, lambda: sum(head(features, targets)[1].values())


def mask_head(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    head = test_mask_head.build(test_mask_head.OURS, "MODEL.ROI_MASK_HEAD.UPSAMPLER", name)
    regions, instances = test_mask_head.regions(4), [test_mask_head.ground_truth(4)]
    return head, lambda: head(regions, instances)["loss_mask"]


def upernet_top_down(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    opts = ["MODEL.SEM_SEG_HEAD.UPSAMPLER", name, "MODEL.SEM_SEG_HEAD.CONVS_DIM", CHANNELS]
    head = test_upernet.build(*opts)
    features, targets = test_upernet.inputs(64, 64)
    return head, lambda: sum(head(features, targets)[1].values())


GUIDED = [name for name in UPSAMPLER_REGISTRY if name not in UPSAMPLER_REGISTRY.unguided()]


@pytest.mark.parametrize(
    "build, name",
    [
        *product([pyramid], UPSAMPLER_REGISTRY),
        # These differ from the pyramid in where an upsampler is, and not in what it does there.
        *product([retinanet_pyramid], ["LDAAQU", "LDAAQUStar", "FADE"]),
        *product([semantic_fpn, upernet, mask_head], ["LDAAQU", "CARAFE", "DySample"]),
        *product([upernet_top_down], ["FADE", "GuidedLDAAQU"]),
    ],
)
def test_loss_falls(build, name):
    torch.manual_seed(0)
    model, loss = build(name)
    upsamplers = [m for m in model.modules() if type(m) is UPSAMPLER_REGISTRY.get(name)]
    others = {type(m) for m in model.modules() if isinstance(m, Upsampler)} - {type(upsamplers[0])}
    assert others == ({Bilinear} if build is upernet_top_down else set())
    before = [{n: p.detach().clone() for n, p in m.named_parameters()} for m in upsamplers]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    with EventStorage():
        for _ in range(12):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    assert all(torch.tensor(losses).isfinite()) and max(losses[-5:]) < losses[0], losses
    moved = {
        n
        for old, m in zip(before, upsamplers, strict=True)
        for n, p in m.named_parameters()
        if not torch.equal(p, old[n])
    }
    # Of one upsampler at least: all that DLU reads of a map of 2 x 2 is its border.
    assert moved == set(before[0])


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize(
    "build, key",
    [
        (partial(test_semantic_fpn.build, test_semantic_fpn.OURS), "MODEL.SEM_SEG_HEAD.UPSAMPLER"),
        (
            partial(test_semantic_fpn.build, test_semantic_fpn.OURS),
            "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER",
        ),
        (test_upernet.build, "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER"),
        (test_upernet.build, "MODEL.UPERNET.FUSION_UPSAMPLER"),
        (partial(test_mask_head.build, test_mask_head.OURS), "MODEL.ROI_MASK_HEAD.UPSAMPLER"),
    ],
)
def test_guided_upsamplers_need_a_guide(build, key, name):
    allowed = ", ".join(UPSAMPLER_REGISTRY.unguided())
    message = f"^{key} '{name}' .*needs a high-resolution guide.*; allowed are {allowed}$"
    with pytest.raises(InputError, match=message):
        build(key, name)
