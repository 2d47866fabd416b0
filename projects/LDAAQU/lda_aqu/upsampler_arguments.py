"""Upsamplers as arguments of command lines: NAME, or NAME:OPTION=VALUE,... with its options."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .errors import InputError
from .upsamplers import UPSAMPLER_REGISTRY
from .upsamplers.registry import check_options


def parse_upsampler(text: str) -> tuple[str, dict[str, Any]]:
    """``"LDAAQU:reduction=16,num_heads=2"`` to its name and ``{"reduction": 16, "num_heads": 2}``.

    Raises:
        InputError: not of this form, or no upsampler, option or type of value that there is.
    """
    name, _, rest = text.partition(":")
    try:
        options = yaml.safe_load(f"{{{rest.replace('=', ': ')}}}")
        check_options(name, options)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: options are NAME:OPTION=VALUE,OPTION=VALUE") from error
    except InputError as error:
        raise InputError(f"{text!r}: {error}") from error
    return name, options


def upsampler_keys(keys: Sequence[str], name: str, options: Mapping[str, Any]) -> list[str]:
    """``[KEY, VALUE, ...]`` that make an upsampler that of each of ``keys``.

    Args:
        keys: those that name an upsampler, e.g. ``MODEL.FPN.UPSAMPLER``.
        name: of the upsampler.
        options: of its constructor, which become ``MODEL.<config_node>.<OPTION>``.
    """
    node = UPSAMPLER_REGISTRY.get(name).config_node
    pairs = dict.fromkeys(keys, name)
    pairs |= {f"MODEL.{node}.{option.upper()}": value for option, value in options.items()}
    return [str(text) for pair in pairs.items() for text in pair]
