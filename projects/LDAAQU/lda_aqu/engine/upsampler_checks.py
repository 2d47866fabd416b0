"""A check that a model has the upsamplers that its config names."""

from detectron2.config import CfgNode

from ..errors import MISFITS, InputError
from ..upsamplers import UPSAMPLER_REGISTRY, Upsampler
from .config_merge import config_items, read_config_file, read_options
from .run_checks import build_on_cpu

_PARTS = {
    "MODEL.FPN.UPSAMPLER": (
        "MODEL.BACKBONE.NAME",
        "build_resnet_lda_aqu_fpn_backbone, or for RetinaNet build_retinanet_...",
    ),
    "MODEL.SEM_SEG_HEAD.UPSAMPLER": ("MODEL.SEM_SEG_HEAD.NAME", "UpsamplerSemSegFPNHead"),
    "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER": ("MODEL.SEM_SEG_HEAD.NAME", "UpsamplerSemSegFPNHead"),
    "MODEL.UPERNET.FUSION_UPSAMPLER": ("MODEL.SEM_SEG_HEAD.NAME", "UPerNetHead"),
    "MODEL.ROI_MASK_HEAD.UPSAMPLER": ("MODEL.ROI_MASK_HEAD.NAME", "UpsamplerMaskRCNNConvHead"),
}
"""Keys that name an upsampler: the key of the part that is to use it, and what does."""

_NO_NAME = "no such name"


def check_upsamplers_are_used(cfg: CfgNode, config_file: str, opts: list[str]) -> None:
    """Raise InputError if an upsampler is named, or given options, and the model does not have it.

    See :func:`check_names_are_used` and :func:`check_options_are_used`.
    """
    check_names_are_used(cfg, config_file, opts)
    check_options_are_used(cfg, opts)


def check_names_are_used(cfg: CfgNode, config_file: str, opts: list[str]) -> None:
    """Raise InputError if an upsampler is named for a part that the model does not have.

    A file, on which others may be based, may have keys of a part that the model has not, as of a
    mask head where there are no masks, or that ``opts`` replace. One that has the keys of all
    parts, such as the ``config.yaml`` that a run writes, names none.

    Args:
        cfg: a config whose model can be built.
        config_file: the YAML file that it is of, or "".
        opts: ``[KEY, VALUE, ...]``, merged into that.
    """
    options = dict(config_items(CfgNode(read_options(opts))))
    file = dict(config_items(CfgNode(read_config_file(config_file)))) if config_file else {}
    if _PARTS.keys() <= file.keys():
        file = {}
    values = dict(config_items(cfg))
    for key, (part, name) in _PARTS.items():
        named = key in options or (key in file and part not in options and reads(cfg, part))
        if named and not reads(cfg, key):
            raise InputError(
                f"{key} {values[key]!r} has no effect: the model has no part that uses it, with "
                f"{part} {values[part]!r}; what does is {name}"
            )


def check_options_are_used(cfg: CfgNode, opts: list[str]) -> None:
    """Raise InputError if ``opts``, as above, have options of an upsampler that the model has not.

    A file may have those of any upsampler.
    """
    nodes = {UPSAMPLER_REGISTRY.get(name).config_node for name in UPSAMPLER_REGISTRY} - {""}
    given = [key for key in opts[::2] if key.startswith(tuple(f"MODEL.{node}." for node in nodes))]
    if given:
        used = {type(m) for m in build_on_cpu(cfg).modules() if isinstance(m, Upsampler)}
        for key in given:
            if not key.startswith(tuple(f"MODEL.{cls.config_node}." for cls in used)):
                names = ", ".join(sorted(cls.__name__ for cls in used))
                raise InputError(
                    f"{key} has no effect: it is no option of the model's upsamplers, "
                    f"{names or 'of which there are none'}"
                )


def reads(cfg: CfgNode, key: str) -> bool:
    """Whether the model of a config is built with what a key names."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, _NO_NAME])
    try:
        build_on_cpu(cfg)
    except MISFITS as error:
        if _NO_NAME in str(error):
            return True
        raise
    return False
