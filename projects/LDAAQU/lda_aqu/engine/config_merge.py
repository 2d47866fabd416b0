"""Merging a config file and options into a config, with errors of one line."""

import math
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import MISFITS, InputError, as_input_error, did_you_mean, one_line, shorten

_KINDS = {bool: "True or False", float: "a number", str: "a string"}


def read_config_file(config_file: str) -> dict[str, Any]:
    """The keys and values of a YAML file and of those it is based on.

    Unlike Detectron2's ``merge_from_file`` it never runs code that a file asks for.

    Raises:
        InputError: a file that cannot be read.
    """
    source = f"config {config_file}"
    try:
        with as_input_error(source, yaml.YAMLError, OSError, AssertionError, ValueError):
            content = CfgNode.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise InputError(f"{source}: its _BASE_ leads back to itself") from error
    except (TypeError, AttributeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{source}: it, or its _BASE_, does not hold keys with values")
    return content


def read_options(opts: list[str]) -> dict[str, Any]:
    """``[KEY, VALUE, ...]``, as on Detectron2's command lines, as the content of a file.

    Raises:
        InputError: a key without a value.
    """
    if len(opts) % 2:
        raise InputError(f"options must be KEY VALUE pairs, and {opts[-1]!r} has no value")
    content: dict[str, Any] = {}
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node = content
        *parents, name = key.split(".")
        with as_input_error(f"options: {key}", *MISFITS):
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
    return content


def merge(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    """Merge keys and values into a config as yacs does, and integers where it has numbers.

    Raises:
        InputError: names ``source``, and the key that is unknown or whose value, or an element of
            it, is not of the default's type, or the number that is not finite.
    """
    before = cfg.clone()
    try:
        cfg.merge_from_other_cfg(CfgNode(_with_floats(cfg, content)))
    except MISFITS as error:
        key = str(error).strip("'").rpartition("config key: ")[2]
        hint = did_you_mean(key, dict(config_items(cfg))) if isinstance(error, KeyError) else ""
        raise InputError(f"{source}: {one_line(error)}{hint}") from error
    defaults = dict(config_items(before))
    for key, value in config_items(cfg):
        kinds = {_kind(leaf) for leaf in leaves(defaults.get(key)) if leaf is not None}
        for leaf in leaves(value):
            if kinds and _kind(leaf) not in kinds:
                wanted = " or ".join(sorted(_KINDS.get(kind, "keys") for kind in kinds))
            elif isinstance(leaf, float) and not math.isfinite(leaf):
                wanted = "finite"
            else:
                continue
            within = "" if leaf is value else f" {shorten(value)}:"
            raise InputError(f"{source}: {key}{within} {shorten(leaf)} must be {wanted}")


def _with_floats(node: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Content whose integers are floats where the config has a float: yacs converts none."""
    result = {}
    for name, value in content.items():
        default = node.get(name) if isinstance(node, dict) else None
        if isinstance(value, dict):
            value = _with_floats(default, value)
        elif isinstance(default, float):
            decoded = CfgNode._decode_cfg_value(value)
            value = float(decoded) if type(decoded) is int else value
        result[name] = value
    return result


def config_items(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a config that hold a value, dotted, with their values."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from config_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def leaves(value: Any) -> Iterator[Any]:
    """The elements of a list, and of the lists in it; or the value itself."""
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from leaves(element)
    else:
        yield value


def _kind(value: Any) -> type:
    """The type of a value, of which all numbers have the same."""
    return float if type(value) is int else type(value)
