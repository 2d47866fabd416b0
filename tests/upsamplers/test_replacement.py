"""Upsamplers in the place of ``nn.Upsample``, in models of any shape."""

import copy
import logging
import re

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler, replace_upsampling
from lda_aqu.errors import InputError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


class Counting(nn.Module):
    """Counts its calls in a buffer, and remembers the last map in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        return x


class YOLOLike(nn.Module):
    """A list of layers; ``f`` of each says what it reads: -1 for the layer before, or layers."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            (-1, nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.SiLU())),
            (-1, nn.Conv2d(32, 64, 3, 2, 1)),
            (-1, nn.Upsample(None, 2, "nearest")),
            ((-1, 0), nn.Conv2d(96, 32, 1)),
            (-1, nn.Sequential(Counting(), nn.UpsamplingBilinear2d(scale_factor=2))),
            (-1, nn.UpsamplingNearest2d(scale_factor=(4, 4))),
        ]
        for source, layer in layers:
            layer.f = source
        self.model = nn.ModuleList(layer for _, layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for layer in self.model:
            if layer.f != -1:
                x = torch.cat([outputs[source] for source in layer.f], 1)
            outputs.append(x := layer(x))
        return x


UPSAMPLES = ["model.2", "model.4.1", "model.5"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = YOLOLike()
    model.model[1].eval()
    model.model[5].eval()
    return model


def everything(model: nn.Module) -> tuple:
    """What is not to change: values, modules, modes, hooks."""
    values = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    modes = [module.training for module in modules.values()]
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks] for m in modules.values()]
    return values, modules, modes, hooks


@pytest.mark.parametrize("name", UPSAMPLER_REGISTRY.unguided())
def test_all_are_replaced_and_nothing_else_changes(model, name):
    x = torch.randn(1, 3, 8, 12)
    values, modules, modes, _ = everything(model)
    new = replace_upsampling(model, name, x)
    assert list(new) == UPSAMPLES
    assert all(type(module) is UPSAMPLER_REGISTRY.get(name) for module in new.values())
    assert [(module.in_channels, module.scale_factor) for module in new.values()] == [
        (64, 2), (32, 2), (32, 4)
    ]  # fmt: skip
    for other, module in model.named_modules():
        if other not in new and other in modules:
            assert module is modules[other]
    for key, value in values.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    assert [model.get_submodule(other).training for other in modules] == modes
    assert not new["model.5"].training
    for size in ((8, 12), (12, 4)):
        assert model(torch.randn(2, 3, *size)).shape == (2, 32, 4 * size[0], 4 * size[1])


def test_nearest_gives_the_same_bits(model):
    expected = copy.deepcopy(model)
    expected.model[4][1] = nn.UpsamplingNearest2d(scale_factor=2)
    assert replace_upsampling(model, "Nearest", torch.randn(1, 3, 8, 8)).keys() == {*UPSAMPLES}
    x = torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


def test_options_training_and_loading(model):
    new = replace_upsampling(model, "LDAAQU", torch.randn(1, 3, 8, 8), reduction=2, num_heads=2)
    assert all(module.num_heads == 2 for module in new.values())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    for name, module in new.items():
        for key, parameter in module.named_parameters(prefix=name):
            if "proj_k" in key:
                assert not torch.equal(parameter, before[key]), key
    again = YOLOLike()
    replace_upsampling(again, "LDAAQU", torch.randn(1, 3, 8, 8), reduction=2, num_heads=2)
    model.model[4][0].last = torch.zeros(())  # which a call gave another shape
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(again.eval()(x), model.eval()(x), rtol=0, atol=0)


def test_exports_with_dynamic_sizes(model):
    model.model[4][0] = nn.Identity()  # which keeps what a model that is exported may not
    replace_upsampling(model.eval(), "LDAAQU", torch.randn(1, 3, 8, 8), kernel_size=1)
    x = torch.randn(1, 3, 8, 8)
    axes = {
        2: 4 * torch.export.Dim("h", min=2, max=64),
        3: 4 * torch.export.Dim("w", min=2, max=64),
    }
    exported = torch.export.export(model, (x,), dynamic_shapes=(axes,)).module()
    traced = torch.jit.trace(model, x)
    x = torch.randn(1, 3, 16, 12)
    for other in (exported, traced):
        torch.testing.assert_close(other(x), model(x))


def test_a_shared_module_stays_shared():
    up = nn.Upsample(scale_factor=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), up, nn.Sequential(nn.Conv2d(8, 8, 1), up), up)
    new = replace_upsampling(model, "LDAAQU", torch.randn(1, 3, 2, 2))
    assert list(new) == ["1", "2.1", "3"] and len({*new.values()}) == 1
    assert model[1] is model[2][1] is model[3] is new["3"]
    again = nn.Sequential(nn.Conv2d(3, 8, 1), up, nn.Sequential(nn.Conv2d(8, 8, 1), up), up)
    assert list(replace_upsampling(again, "LDAAQU", torch.randn(1, 3, 2, 2), exclude=["2"])) == [
        "1", "3"
    ]  # fmt: skip
    assert again[2][1] is up


def test_a_factor_that_was_set_later():
    up = nn.Upsample(scale_factor=2)
    up.scale_factor = 3
    new = replace_upsampling(nn.Sequential(up), "Nearest", torch.randn(1, 3, 2, 2))
    assert new["0"].scale_factor == 3


def test_the_dtype_is_that_of_the_weights_around(device):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2))
    replaced = copy.deepcopy(model).double()
    replace_upsampling(replaced, "LDAAQU", torch.randn(1, 3, 4, 4).double())
    assert {p.dtype for p in replaced.parameters()} == {torch.float64}
    replaced = copy.deepcopy(model).requires_grad_(False)
    with torch.autocast(device.type, torch.bfloat16):
        new = replace_upsampling(replaced, "LDAAQU", torch.randn(1, 3, 4, 4))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in new["1"].parameters())
    replaced = copy.deepcopy(model).to("meta")
    replace_upsampling(replaced, "LDAAQU", torch.randn(1, 3, 4, 4, device="meta"))
    assert all(p.is_meta for p in replaced.parameters())


class Calling(nn.Module):
    """A module whose forward is a function of it and the input."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Sharpened(nn.Upsample):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def hooked(kind: str) -> nn.Module:
    up = nn.Upsample(scale_factor=2)
    getattr(up, f"register_{kind}_hook")(lambda *_: None)
    return up


def held_elsewhere() -> nn.Module:
    model = Calling(lambda self, x: self.kept[0](x), up=nn.Upsample(scale_factor=2))
    model.kept = [model.up]
    return model


def wrapped() -> nn.Module:
    model = nn.Module.__new__(DistributedDataParallel)  # not made in full: that needs a group
    nn.Module.__init__(model)
    model.module = of(nn.Upsample(scale_factor=2))
    return model


def of(up: nn.Module, channels: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels), Counting(), up)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: of(nn.Upsample(size=(8, 8))), r"^3: makes maps of size=\(8, 8\), whatever theirs"),
        (lambda: of(nn.Upsample(scale_factor=1.5)), "^3: scale_factor=1.5 is not one whole factor"),
        (lambda: of(nn.Upsample(scale_factor=(2, 1))), r"^3: scale_factor=\(2.0, 1.0\) is not one"),
        (lambda: of(nn.Upsample(scale_factor=1)), "^3: scale_factor=1.0 is not one whole factor"),
        (lambda: of(nn.Upsample(scale_factor=0.5)), "^3: scale_factor=0.5 is not one whole factor"),
        (lambda: of(Sharpened(scale_factor=2)), "^3: a Sharpened does more than nn.Upsample does"),
        (lambda: of(hooked("forward")), "^3: has hooks, which would be lost"),
        (lambda: of(hooked("forward_pre")), "^3: has hooks, which would be lost"),
        (lambda: of(hooked("full_backward")), "^3: has hooks, which would be lost"),
        (lambda: of(hooked("full_backward_pre")), "^3: has hooks, which would be lost"),
        (
            lambda: of(nn.Upsample(scale_factor=2), 6),
            r"^3: in_channels \(6\) is not a multiple of reduction \(4\) "
            r"\(exclude=\['3'\] leaves them",
        ),
        (
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), of(nn.Upsample(size=9))),
            r"^0: in_channels \(3\) is not .*; 1.3: makes maps of size=9, .*exclude=\['0', '1.3'\]",
        ),
        (
            lambda: Calling(lambda self, x: x, up=nn.Upsample(scale_factor=2)),
            "^up: is not called in evaluation mode with these example_inputs",
        ),
        (
            lambda: Calling(
                lambda self, x: self.up(torch.cat([self.up(x)] * 2, 1)),
                up=nn.Upsample(scale_factor=2),
            ),
            "^up: is called with maps of 3 and of 6 channels: let each of the calls have an nn.Up",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(2), nn.Upsample(scale_factor=2)),
            r"^1: is called with torch.float32 \[1, 3, 16\], not with floating \(N, C, H, W\)",
        ),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Upsample(scale_factor=2)),
            r"^1: is called with torch.float32 \[1, 1, 3, 4, 4\]",
        ),
        (
            lambda: Calling(lambda self, x: self.up(x.byte()), up=nn.Upsample(scale_factor=2)),
            r"^up: is called with torch.uint8 \[1, 3, 4, 4\]",
        ),
        (
            lambda: nn.Sequential(
                of(nn.Identity()),
                Calling(
                    lambda self, x: self.up(x[:, :, : len(self.up.mode)]), up=nn.Upsample(None, 2)
                ),
            ),
            "^with LDAAQU at 1.up the model fails: AttributeError: .*'mode'",
        ),
        (
            lambda: nn.Sequential(of(nn.Identity()), held_elsewhere()),
            "^1.up: the model calls the nn.Upsample that it has there by another way than this",
        ),
        (
            lambda: Calling(lambda self, x: self.nothing, up=nn.Upsample(scale_factor=2)),
            "^the model does not run with example_inputs: AttributeError: .*'nothing'",
        ),
        (lambda: nn.Upsample(scale_factor=2), "^the model itself is an nn.Upsample"),
        (lambda: of(nn.Identity()), "^the model has no nn.Upsample to replace$"),
        (
            lambda: of(nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.PixelShuffle(2))),
            r"^the model has no nn.Upsample to replace; it upsamples by 3.0 \(ConvTranspose2d\), "
            r"3.1 \(PixelShuffle\): docs/models.md shows how to replace these$",
        ),
        (
            lambda: nn.Sequential(
                of(nn.Identity()), Calling(lambda _, x: F.interpolate(x, (9, 9)))
            ),
            r"^the model has no nn.Upsample to replace; F.interpolate is called by 1 "
            r"\(Calling, 8 channels\): calls in code cannot be replaced from outside; let these",
        ),
        (
            lambda: torch.jit.script(nn.Sequential(nn.Upsample(scale_factor=2))),
            "^the model is compiled by TorchScript already: replace its upsampling first",
        ),
        (
            lambda: torch.compile(of(nn.Upsample(scale_factor=2))),
            "^the model is compiled by torch.c",
        ),
        (
            lambda: nn.Sequential(torch.compile(of(nn.Upsample(scale_factor=2)))),
            "^0 is compiled by torch.compile already",
        ),
        (
            lambda: nn.DataParallel(of(nn.Upsample(scale_factor=2))),
            "^the model is wrapped by DataParallel already",
        ),
        (wrapped, "^the model is wrapped by DistributedDataParallel already: replace its"),
    ],
)
def test_what_cannot_be_replaced_is_said_and_changes_nothing(build, message):
    model = build()
    before = everything(model)
    with pytest.raises(InputError, match=message) as caught:
        replace_upsampling(model, "LDAAQU", torch.randn(1, 3, 4, 4), num_groups=1)
    assert "\n" not in str(caught.value)
    after = everything(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("LDAAQUE", {}, "^unknown upsampler 'LDAAQUE'; did you mean LDAAQU"),
        ("LDAAQU", {"reduktion": 2}, "^LDAAQU has no option 'reduktion'; did you mean reduction"),
        ("SAPAB", {}, "^SAPAB needs a high-resolution guide, which an nn.Upsample is not called"),
        (
            "LDAAQU",
            {"exclude": ["model.6"]},
            "^exclude: the model has no module 'model.6'; did you",
        ),
        ("LDAAQU", {"exclude": ["model"]}, "^the model has no nn.Upsample to replace$"),
    ],
)
def test_arguments_that_do_not_fit_raise(model, name, arguments, message):
    with pytest.raises(InputError, match=message):
        replace_upsampling(model, name, torch.randn(1, 3, 8, 8), **arguments)


def test_functional_calls_are_told_where_modules_are_replaced(caplog):
    enlarging = Calling(lambda _, x: F.interpolate(x, scale_factor=2))
    shrinking = Calling(lambda _, x: F.interpolate(x, scale_factor=0.5))
    own = build_upsampler("LDAAQU", 8), build_upsampler("DySample", 8)  # which calls it, too
    model = nn.Sequential(of(nn.Upsample(scale_factor=2)), enlarging, shrinking, *own)
    with caplog.at_level(logging.INFO, "lda_aqu.upsamplers"):
        new = replace_upsampling(model, "LDAAQU", torch.randn(1, 3, 4, 4), offset_range=4.0)
    assert list(new) == ["0.3"]
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert re.match(
        r"Not replaced: F.interpolate is called by 1 \(Calling, 8 channels\): ", told[0]
    )
    assert "0.3: LDAAQU(in_channels=8, scale_factor=2, offset_range=4.0)" in caplog.text
    assert "not fused" not in caplog.text


def test_example_inputs_are_a_tuple_or_the_one_argument():
    up = nn.Upsample(scale_factor=2)
    model = Calling(lambda self, maps: self.up(maps["coarse"]) + maps["fine"], up=up)
    maps = {"coarse": torch.randn(1, 8, 2, 2), "fine": torch.randn(1, 8, 4, 4)}
    assert list(replace_upsampling(model, "LDAAQU", maps)) == ["up"]
    assert list(replace_upsampling(nn.Sequential(up), "LDAAQU", (maps["coarse"],))) == ["0"]


def test_example_kwargs_are_keyword_arguments():
    class KeywordOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, *, pixel_values: Tensor) -> Tensor:
            return self.up(pixel_values)

    kwargs = {"pixel_values": torch.randn(1, 8, 4, 4)}
    assert list(replace_upsampling(KeywordOnly(), "LDAAQU", example_kwargs=kwargs)) == ["up"]
    with pytest.raises(InputError, match="does not run with example_inputs: TypeError.*'pixel_val"):
        replace_upsampling(KeywordOnly(), "LDAAQU")
