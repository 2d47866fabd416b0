"""Merging a config file and options into a config, with errors that name the key."""

import ast
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import InputError, did_you_mean

# What ast.literal_eval raises for text that is no literal, among them a dict by a list.
_UNDECODABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)

_LARGEST = sys.float_info.max

_KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    tuple: "a list",
}


def read_config_file(config_file: str) -> dict[str, Any]:
    """The keys and values of a YAML file and of those it is based on.

    Unlike Detectron2's ``merge_from_file`` it never runs code that a file asks for.

    Raises:
        InputError: a file that cannot be read.
    """
    source = f"config {config_file}"
    try:
        content = CfgNode.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise InputError(f"{source}: its _BASE_ leads back to itself") from error
    except (yaml.YAMLError, OSError, AssertionError, ValueError) as error:
        raise InputError(f"{source}: {textwrap.shorten(str(error), 300)}") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"{source}: it, or its _BASE_, does not hold keys with values") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: it does not hold keys with values")
    return content


def merge_content(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    """Merge the keys and values of a file, named in messages as ``source``, into a config.

    Raises:
        InputError: an unknown key, a value of the wrong type, or another version than Detectron2's
            current one.
    """
    if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
        raise InputError(f"{source}: VERSION {content['VERSION']!r} must be {cfg.VERSION}")
    _merge(cfg, cfg, content, "", source)


def merge_options(cfg: CfgNode, opts: list[str]) -> None:
    """Merge ``[KEY, VALUE, ...]``, as on Detectron2's command lines, into a config.

    Raises:
        InputError: a key without a value, an unknown key, or a value of the wrong type.
    """
    if len(opts) % 2:
        raise InputError(f"options must be KEY VALUE pairs, and {opts[-1]!r} has no value")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        set_key(cfg, key, value, "options")


def _merge(cfg: CfgNode, node: CfgNode, content: dict, prefix: str, source: str) -> None:
    """Merge the content of a file into a node of the config, key by key."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if node.is_new_allowed() and name not in node:
            node[name] = CfgNode(value) if isinstance(value, dict) else value
        elif isinstance(node.get(name), CfgNode) and isinstance(value, dict):
            _merge(cfg, node[name], value, f"{key}.", source)
        else:
            set_key(cfg, key, value, source)


def set_key(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    """Set one key, converted as yacs does, and integers to numbers where those are wanted.

    Raises:
        InputError: an unknown key, or a value of the wrong type.
    """
    default = cfg
    for part in key.split("."):
        if not isinstance(default, CfgNode) or part not in default:
            raise InputError(
                f"{source}: unknown config key {shown(key)[1:-1]}{_suggestion(cfg, key)}"
            )
        default = default[part]
    if isinstance(default, CfgNode):
        raise InputError(f"{source}: {key} holds keys, not a value: {shown(value)}")
    decoded = _decode(value)
    if isinstance(default, float) and type(decoded) is int and abs(decoded) <= _LARGEST:
        value = decoded = float(decoded)
    kind = _KINDS.get(type(default), "another value")
    wrong = InputError(f"{source}: {key} {shown(value)} must be {kind}")
    if decoded is None and default is not None:
        raise wrong
    try:
        cfg.merge_from_list([key, value])
    except (*_UNDECODABLE, AssertionError) as error:
        raise wrong from error
    kinds = {_kind(leaf) for leaf in leaves(default) if leaf is not None}
    for leaf in leaves(decoded):
        if kinds and _kind(leaf) not in kinds:
            raise InputError(
                f"{source}: {key} {shown(value)}: {shown(leaf)} must be "
                f"{_KINDS[min(kinds, key=str)]}"
            )


def _decode(value: Any) -> Any:
    """A string that is a Python literal as that, as yacs takes it."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except _UNDECODABLE:
        return value


def config_items(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a config, dotted, those of its nodes among them, with their values."""
    for key, value in cfg.items():
        yield prefix + key, value
        if isinstance(value, CfgNode):
            yield from config_items(value, f"{prefix}{key}.")


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    return textwrap.shorten(repr(value), 80, placeholder="...")


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


def _suggestion(cfg: CfgNode, key: str) -> str:
    """The known key nearest to an unknown one, and those beside it, for a message."""
    known = [dotted for dotted, _ in config_items(cfg)]
    parent, _, name = key.rpartition(".")
    namesakes = [other for other in known if other.split(".")[-1] == name]
    beside = [k.removeprefix(f"{parent}.") for k in known if k.rpartition(".")[0] == parent]
    near = did_you_mean(key, known) or did_you_mean(key, namesakes, cutoff=0)
    if not parent or not beside:
        return near
    return textwrap.shorten(f"{near}; {parent} has {', '.join(beside)}", 300, placeholder=" ...")
