"""Upsamplers in the place of the ``nn.Upsample`` modules of a model."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ..errors import MISFITS, InputError, as_input_error, did_you_mean
from .base import GuidedUpsampler, Upsampler
from .fusing import HOOKS
from .registry import UPSAMPLER_REGISTRY, build_upsampler, check_options

logger = logging.getLogger(__name__)


def replace_upsampling(
    model: nn.Module,
    upsampler: str,
    example_inputs: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    exclude: Iterable[str] = (),
    **options: object,
) -> dict[str, Upsampler]:
    """Put upsamplers in the place of the ``nn.Upsample`` modules of a model.

    The model is changed in place. It is run with the example before, to learn the channels of each
    map that is upsampled, and once more after, to see that it works: in evaluation mode and without
    gradients, on copies of its buffers, so that nothing else in it changes. A module that is found
    under several names, or called several times, is replaced by one module, which shares its
    weights in the same way.

    Each new module has the factor, the device, the dtype and the mode (training or evaluation) of
    what it replaces, and attributes that were added to that. Its parameters are new ones, to be
    trained, and named after it in the state dict; to load a state dict that has them, replace
    first. So do to compile, script or wrap the model.

    Args:
        model: any module that calls modules of ``nn.Upsample``, ``nn.UpsamplingNearest2d`` or
            ``nn.UpsamplingBilinear2d`` on maps (N, C, H, W), with one whole factor.
        upsampler: the name of one in ``UPSAMPLER_REGISTRY`` that needs no guide.
        example_inputs: what to call the model with: a tuple of arguments, or the one argument.
        example_kwargs: and its keyword arguments.
        exclude: names of modules to leave as they are, with all that is in them, as
            ``model.named_modules()`` has them.
        options: options of the upsampler's constructor.

    Returns:
        The new modules, by the names that they are found under in ``model``.

    Raises:
        InputError: there is nothing to replace, something cannot be replaced, or the arguments do
            not fit; says what, why and what to do instead. The model is then as it was.
    """
    check_options(upsampler, options)
    if issubclass(UPSAMPLER_REGISTRY.get(upsampler), GuidedUpsampler):
        raise InputError(
            f"{upsampler} needs a high-resolution guide, which an nn.Upsample is not called with; "
            f"allowed are {', '.join(UPSAMPLER_REGISTRY.unguided())}"
        )
    _check_model(model)
    names = _find(model, tuple(exclude))
    interpolations = _Interpolations(model)
    with interpolations, as_input_error("the model does not run with example_inputs", *MISFITS):
        calls = _observe(model, example_inputs, example_kwargs, names)
    if not names:
        raise InputError(
            f"the model has no nn.Upsample to replace{_other_upsampling(model)}"
            f"{interpolations.text('; ')}"
        )

    old = {name: module for module, places in names.items() for name in places}
    new, problems = {}, []
    for module, places in names.items():
        try:
            replacement = _make(module, calls[module], upsampler, options)
        except InputError as error:
            problems.append(f"{' and '.join(places)}: {error}")
        else:
            new |= dict.fromkeys(places, replacement)
    if problems:
        left = [name for name in old if name not in new]
        raise InputError(f"{'; '.join(problems)} (exclude={left} leaves them as they are)")

    _put(model, new)
    try:
        with as_input_error(f"with {upsampler} at {', '.join(new)} the model fails", *MISFITS):
            watched = [*names, *new.values()]
            calls = _observe(model, example_inputs, example_kwargs, watched)
        for name, module in new.items():
            if calls[old[name]] and old[name] not in model.modules():
                raise InputError(
                    f"{name}: the model calls the nn.Upsample that it has there by another way "
                    "than this name, as from a list: let it call it by its name"
                )
            for call in calls[module]:
                if call.output != [module.scale_factor * size for size in call.shape[2:]]:
                    raise InputError(
                        f"{name}: {upsampler} makes {call.output} of {call.shape[2:]}, "
                        f"not {module.scale_factor} times that"
                    )
    except BaseException:
        _put(model, old)
        raise

    for name, module in new.items():
        given = {"in_channels": module.in_channels, "scale_factor": module.scale_factor, **options}
        logger.info("%s: %s(%s)", name, upsampler, ", ".join(f"{k}={v}" for k, v in given.items()))
    if interpolations.found:
        logger.warning("Not replaced: %s", interpolations.text())
    return new


class _Call(NamedTuple):
    """What an upsampling module was called with, and the size (H', W') of what it gave."""

    shape: list[int]
    output: list[int]
    dtype: torch.dtype
    device: torch.device
    autocast: bool


def _check_model(model: nn.Module) -> None:
    """Raise InputError where modules cannot be exchanged in what a model is."""
    if isinstance(model, nn.Upsample):
        raise InputError(
            "the model itself is an nn.Upsample, which nothing holds: build_upsampler makes what "
            "takes its place"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = "compiled by TorchScript"
        elif "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            what = "compiled by torch.compile"
        elif isinstance(module, nn.DataParallel | DistributedDataParallel):
            what = f"wrapped by {type(module).__name__}"
        else:
            continue
        raise InputError(f"{name or 'the model'} is {what} already: replace its upsampling first")


def _find(model: nn.Module, exclude: tuple[str, ...]) -> dict[nn.Upsample, list[str]]:
    """The ``nn.Upsample`` modules of a model that are not excluded, and all their names."""
    known = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for name in exclude:
        if name not in known:
            raise InputError(
                f"exclude: the model has no module {name!r}{did_you_mean(name, known)}"
            )
    names: dict[nn.Upsample, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        excluded = any(f"{name}.".startswith(f"{other}.") for other in exclude)
        if isinstance(module, nn.Upsample) and not excluded:
            names.setdefault(module, []).append(name)
    return names


def _other_upsampling(model: nn.Module) -> str:
    """What to say of a model's modules that upsample and change the channels, too, or ""."""
    found = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.ConvTranspose2d | nn.PixelShuffle)
    ]
    if not found:
        return ""
    return f"; it upsamples by {', '.join(found)}: docs/models.md shows how to replace these"


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        model.set_submodule(name, module)


def _make(
    module: nn.Upsample, calls: list[_Call], upsampler: str, options: Mapping[str, object]
) -> Upsampler:
    """An upsampler for the place of a module that was called so; InputError says why not."""
    if type(module).forward is not nn.Upsample.forward or "forward" in vars(module):
        raise InputError(f"a {type(module).__name__} does more than nn.Upsample does")
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise InputError("has hooks, which would be lost: remove them first")
    if module.scale_factor is None:
        raise InputError(
            f"makes maps of size={module.size}, whatever theirs is: give it a scale_factor instead"
        )
    scale = module.scale_factor
    factors = {*map(float, scale if isinstance(scale, tuple) else (scale,))}
    factor = max(factors)
    if len(factors) > 1 or factor < 2 or not factor.is_integer():
        raise InputError(f"scale_factor={scale} is not one whole factor above 1")
    if not calls:
        raise InputError("is not called in evaluation mode with these example_inputs")
    for call in calls:
        if len(call.shape) != 4 or not call.dtype.is_floating_point:
            raise InputError(
                f"is called with {call.dtype} {call.shape}, not with floating (N, C, H, W)"
            )
    widths = sorted({call.shape[1] for call in calls})
    if len(widths) > 1:
        raise InputError(
            f"is called with maps of {' and of '.join(map(str, widths))} channels: "
            "let each of the calls have an nn.Upsample of its own"
        )
    replacement = build_upsampler(upsampler, widths[0], int(factor), **options)
    dtype = torch.float32 if calls[0].autocast else calls[0].dtype
    replacement.to(calls[0].device, dtype).train(module.training)
    for name in vars(module).keys() - vars(nn.Upsample()).keys():
        vars(replacement).setdefault(name, vars(module)[name])
    return replacement


def _observe(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    watched: Iterable[nn.Module],
) -> dict[nn.Module, list[_Call]]:
    """The calls of each module of ``watched`` when the model is run with the example.

    It is run in evaluation mode, without gradients, on copies of its buffers.
    """
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in watched}

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        x = next(iter((*args, *kwargs.values())))
        kind = x.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        calls[module].append(_Call([*x.shape], [*output.shape[2:]], x.dtype, x.device, autocast))

    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack, torch.no_grad():
        for module in calls:
            stack.enter_context(module.register_forward_hook(record, with_kwargs=True))
        try:
            for module in modes:  # not by eval(), which models may have made do more
                module.training = False
            functional_call(model, buffers, arguments, example_kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return calls


class _Interpolations(TorchFunctionMode):
    """Notes which modules of a model enlarge maps by calls of ``F.interpolate``.

    Those of ``nn.Upsample`` and of the upsamplers are not meant.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.found: dict[str, None] = {}
        self._running = [model]  # and in it, from there to the module whose code runs
        self._handles = ExitStack()

    def __enter__(self) -> Self:
        # No hooks within upsamplers, whose fused operators would make way for them.
        within = {
            part
            for module in self.names
            if isinstance(module, Upsampler)
            for part in module.modules()
            if part is not module
        }
        for module in self.names.keys() - within:
            self._handles.enter_context(module.register_forward_pre_hook(self._enter))
            self._handles.enter_context(module.register_forward_hook(self._leave, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._handles.close()

    def _enter(self, module: nn.Module, args: tuple) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, and note what calls it if it is ``F.interpolate``."""
        output = func(*args, **(kwargs or {}))
        module = self._running[-1]
        if func is F.interpolate and not isinstance(module, nn.Upsample | Upsampler):
            x = args[0] if args else kwargs["input"]
            if output.numel() > x.numel():
                name = self.names[module] or "the model"
                self.found[f"{name} ({type(module).__name__}, {x.shape[1]} channels)"] = None
        return output

    def text(self, before: str = "") -> str:
        """What to say of what was found, ``before`` and that, or ""."""
        if not self.found:
            return ""
        return (
            f"{before}F.interpolate is called by {', '.join(self.found)}: calls in code cannot be "
            "replaced from outside; let these modules call an upsampler (see docs/models.md)"
        )
