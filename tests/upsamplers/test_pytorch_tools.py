"""What PyTorch's own tools do to a module acts on the upsamplers, or raises."""

import copy
import logging
import multiprocessing

import pytest
import torch
from gradients import gradgradcheck
from lda_aqu import LDAAQU, UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.ops import local_deformable_attention
from lda_aqu.upsamplers import GuidedUpsampler
from random_tensors import normals
from randomized import randomized
from torch import distributed, nn
from torch.ao import quantization
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

CHANNELS = 32
ATTENTION = ("LDAAQU", "LAU", "GuidedLDAAQU")
OPERATORS = (*ATTENTION, "CARAFE", "DLU", "SAPAB", "FADE", "FADELite", "FreqFusion", "A2U")
LAYERS = {
    "LDAAQU": ("layer_norm", "proj_q", "proj_k", *(f"conv_offset.{i}" for i in range(4))),
    "LAU": ("layer_norm.norm", "proj_q", "proj_k"),
    "GuidedLDAAQU": ("guide_norm", "layer_norm", "proj_q", "proj_k", "conv_offset.3"),
}
EVERY_LAYER = [(name, layer) for name, layers in LAYERS.items() for layer in layers]


def build(name: str) -> nn.Module:
    return randomized(name, CHANNELS)


def inputs_of(module: nn.Module, dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    """A map and, where the module asks for one, its guide."""
    normal = normals(1)
    sizes = [(4, 5), (8, 10)] if isinstance(module, GuidedUpsampler) else [(4, 5)]
    return tuple(normal(2, CHANNELS, *size).to(dtype).requires_grad_() for size in sizes)


def gradients(function, inputs, parameters) -> list[torch.Tensor]:
    y = function(*inputs)
    return [y, *torch.autograd.grad(y.square().sum(), [*inputs, *parameters])]


@pytest.mark.parametrize("wrapped", ["checkpoint", "wrapper"])
@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
def test_activation_checkpointing(name, wrapped):
    module = build(name)
    inputs, parameters = inputs_of(module), list(module.parameters())
    expected = gradients(module, inputs, parameters)
    if wrapped == "checkpoint":
        actual = gradients(
            lambda *inputs: checkpoint(module, *inputs, use_reentrant=False), inputs, parameters
        )
    else:
        actual = gradients(checkpoint_wrapper(module), inputs, parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
def test_the_output_can_be_changed_in_place(name, backend, monkeypatch):
    """As by ``nn.ReLU(inplace=True)``."""
    monkeypatch.setenv("LDA_AQU_BACKEND", backend)
    module = build(name)
    inputs, parameters = inputs_of(module), list(module.parameters())
    expected = gradients(lambda *inputs: module(*inputs).relu(), inputs, parameters)
    actual = gradients(lambda *inputs: module(*inputs).relu_(), inputs, parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name, layer", EVERY_LAYER)
def test_layers_that_are_called_give_the_same(name, layer, caplog):
    """A hook that changes nothing: the other path, and the log says why it is taken."""
    module = build(name).double()
    inputs, parameters = inputs_of(module, torch.float64), list(module.parameters())
    expected = gradients(module, inputs, parameters)
    calls = []
    module.get_submodule(layer).register_forward_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.INFO, "lda_aqu"):
        actual = gradients(module, inputs, parameters)
    assert calls
    torch.testing.assert_close(actual, expected)


def _with_bias(conv: nn.Conv2d) -> None:
    conv.bias = nn.Parameter(torch.full((conv.out_channels,), 3.0))


def _unpadded(conv: nn.Conv2d) -> None:
    conv.padding = (0, 0)


def _without_bias(layer: nn.Module) -> None:
    layer.bias = None


@pytest.mark.parametrize(
    "layer, change",
    [
        ("conv_offset.0", _with_bias),
        ("conv_offset.3", _without_bias),
        ("conv_offset.1.norm", _without_bias),
        ("layer_norm.norm", _without_bias),
        ("proj_q", _with_bias),
    ],
)
def test_other_settings_of_a_layer_act(layer, change):
    """As where the layers are called, which a hook makes sure of."""
    module = build("LDAAQU")
    change(module.get_submodule(layer))
    inputs = inputs_of(module)
    actual = module(*inputs)
    for name in ("layer_norm", "conv_offset.0"):
        module.get_submodule(name).register_forward_hook(lambda *_: None)
    torch.testing.assert_close(actual, module(*inputs))


def test_a_convolution_that_makes_maps_smaller_is_not_computed_as_one_that_does_not():
    module = build("LDAAQU")
    _unpadded(module.conv_offset[3])
    with pytest.raises(RuntimeError):
        module(*inputs_of(module))


def test_why_layers_are_not_fused_is_logged_once(caplog):
    module = build("LDAAQU")
    module.conv_offset[3].forward = module.conv_offset[3].forward
    with caplog.at_level(logging.INFO, "lda_aqu"):
        for _ in range(2):
            module(*inputs_of(module))
    reason = "OffsetNetwork: its layers are not fused, because of 3: its forward was replaced"
    assert caplog.messages.count(reason) == 1


@pytest.mark.parametrize("name, layer", EVERY_LAYER)
def test_a_hook_acts(name, layer):
    module = build(name)
    inputs = inputs_of(module)
    expected = module(*inputs)
    module.get_submodule(layer).register_forward_hook(lambda _, __, output: 3 * output)
    assert not torch.allclose(module(*inputs), expected)


def by_hand(module: nn.Module, layer: str) -> nn.Module:
    """The same module with plain layers that have the weights which the layers compute with."""
    plain = build("LDAAQU")
    state = {k: v for k, v in module.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(state, strict=False)
    plain.get_submodule(layer).weight.data.copy_(module.get_submodule(layer).weight.detach())
    return plain.eval()


@pytest.mark.parametrize("layer", ["proj_q", "proj_k", "conv_offset.0", "conv_offset.3"])
@pytest.mark.parametrize(
    "act",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["spectral_norm", "weight_norm", "old spectral_norm", "prune"],
)
def test_what_changes_weights(act, layer):
    module = build("LDAAQU")
    act(module.get_submodule(layer))
    module(*inputs_of(module))  # spectral norms iterate once a call in training
    module.eval()
    inputs = inputs_of(module)
    actual = module(*inputs)
    torch.testing.assert_close(actual, by_hand(module, layer)(*inputs))
    actual.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


class Adapted(nn.Module):
    """A low-rank adapter around a convolution, as libraries of adapters put it there."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_an_adapter_in_the_place_of_a_layer():
    module = build("LDAAQU")
    inputs = inputs_of(module)
    expected = copy.deepcopy(module)
    adapter = Adapted(module.proj_q)
    module.proj_q = adapter
    change = adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)
    expected.proj_q.weight.data += change.detach().view_as(expected.proj_q.weight)
    torch.testing.assert_close(module(*inputs), expected(*inputs))
    module(*inputs).sum().backward()
    assert adapter.up.weight.grad.ne(0).any()


def test_quantisation_aware_training():
    module = build("LDAAQU").train()
    module.qconfig = quantization.get_default_qat_qconfig()
    expected = module(*inputs_of(module))
    prepared = quantization.prepare_qat(module)
    output = prepared(*inputs_of(prepared))
    assert (prepared.proj_k.weight_fake_quant.scale != 1).all()
    assert not torch.equal(output, expected)


def test_quantisation_aware_training_by_fx():
    """An upsampler is a leaf of the graph, and stays as it is."""
    model = nn.Sequential(build("LDAAQU"), nn.Conv2d(CHANNELS, 8, 1)).train()
    leaves = PrepareCustomConfig().set_non_traceable_module_classes([LDAAQU])
    mapping, inputs = quantization.get_default_qat_qconfig_mapping(), inputs_of(model[0])
    prepared = prepare_qat_fx(model, mapping, inputs, prepare_custom_config=leaves)
    prepared(*inputs).sum().backward()
    upsampler, convolution = prepared.get_submodule("0"), prepared.get_submodule("1")
    assert type(upsampler) is LDAAQU and upsampler.proj_q.weight.grad.any()
    assert type(convolution) is not nn.Conv2d and convolution.weight.grad.any()


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode_and_jvp(name):
    """Along random directions, against reverse mode; parameters may be frozen."""
    module = build(name).double().requires_grad_(False)
    inputs = tuple(x.detach() for x in inputs_of(module, torch.float64))
    tangents = tuple(torch.randn_like(x) for x in inputs)
    grad = torch.randn_like(module(*inputs))
    _, tangent = jvp(module, inputs, tangents)
    leaves = [x.requires_grad_() for x in inputs]
    grads = torch.autograd.grad(module(*leaves), leaves, grad)
    expected = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close((tangent * grad).sum(), expected)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x.detach(), t) for x, t in zip(inputs, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(module(*duals)).tangent, tangent)


@pytest.mark.cpu
def test_jvp_of_what_was_captured():
    """In a compiled function, and of an exported program, whose graph has the fused operators."""
    module = build("CARAFE")
    (x,) = (x.detach() for x in inputs_of(module))
    expected = jvp(module, (x,), (x,))
    assert expected[1].any()
    compiled = torch.compile(lambda x: jvp(module, (x,), (x,)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(jvp(exported, (x,), (x,)), expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_and_jacrev(name):
    module = build(name).double()
    inputs = tuple(x.detach() for x in inputs_of(module, torch.float64))
    expected = module(*inputs)
    mapped = vmap(lambda *images: module(*(x[None] for x in images))[0])(*inputs)
    torch.testing.assert_close(mapped, expected)
    parameters = dict(module.named_parameters())
    key, value = next(iter(parameters.items()))

    def total(value: torch.Tensor) -> torch.Tensor:
        return functional_call(module, {**parameters, key: value}, inputs).square().sum()

    (wanted,) = torch.autograd.grad(module(*inputs).square().sum(), [value])
    torch.testing.assert_close(jacrev(total)(value.detach()), wanted)


@pytest.mark.parametrize("name", OPERATORS)
def test_second_derivatives(name):
    module = build(name).double()
    inputs = inputs_of(module, torch.float64)
    assert gradgradcheck(module, inputs)


def test_a_backend_that_cannot_be_transformed_raises():
    module = build_upsampler("LDAAQU", CHANNELS, backend="cpp")
    x = torch.randn(1, CHANNELS, 3, 3)
    with pytest.raises(RuntimeError, match="backend 'cpp' cannot run under a transform"):
        jvp(module, (x,), (x,))


@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
@pytest.mark.parametrize("options", [{}, {"init": "bilinear"}])
def test_meta_device_and_half_precision_by_default(name, options):
    if options and name not in ("LAU", "LDAAQU", "GuidedLDAAQU"):
        pytest.skip("has no option 'init'")
    with torch.device("meta"):
        module = build_upsampler(name, CHANNELS, **options)
    inputs = [x.detach().to("meta") for x in inputs_of(module)]
    assert module(*inputs).shape == (2, CHANNELS, 8, 10)
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = build_upsampler(name, CHANNELS, **options)
        y = module(*inputs_of(module, torch.bfloat16))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


@pytest.mark.parametrize("empty", ["width", "height", "depth"])
def test_empty_maps_raise(empty):
    module = build("GuidedLDAAQU")
    shape = {"height": (2, CHANNELS, 0, 5), "width": (2, CHANNELS, 5, 0)}.get(empty)
    if shape:
        with pytest.raises(RuntimeError, match="only a batch may be empty"):
            module(torch.zeros(shape), torch.zeros(2, CHANNELS, 8, 10))
    else:
        depthless, value = torch.zeros(1, 0, 4, 4), torch.zeros(1, 2, 4, 4)
        with pytest.raises(RuntimeError, match="only a batch may be empty"):
            local_deformable_attention(
                depthless, depthless, value, torch.zeros(1, 1, 9, 2, 4, 4), None, 1
            )


def test_a_hook_on_all_modules_sees_every_layer():
    module, seen = build("LDAAQU"), []
    with nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(layer)):
        module(*inputs_of(module))
    assert {module.proj_q, module.proj_k, *module.conv_offset} <= set(seen)


def shard_and_compare(name: str) -> None:
    """In a process of its own: FSDP2 of a single rank has the same output and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    module = build(name)
    inputs = inputs_of(module)
    expected = gradients(module, inputs, list(module.parameters()))
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    y = module(*inputs)
    y.square().sum().backward()
    parameters = list(module.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters)
    actual = [y, *(x.grad for x in inputs), *(p.grad.full_tensor() for p in parameters)]
    torch.testing.assert_close(actual, expected)
    distributed.destroy_process_group()


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["LDAAQU", "GuidedLDAAQU"])
def test_sharded_by_fsdp2(name):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(shard_and_compare, [name])
