"""Merging a config file and options into a config, with errors of one line."""

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import yaml
from detectron2.config import CfgNode

from ..errors import MISFITS, InputError, as_input_error, did_you_mean, one_line, shorten

_MOST_VALUES = 100_000

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
            content = _CheckedYaml.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise InputError(f"{source}: its _BASE_ leads back to itself") from error
    except (TypeError, AttributeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{source}: it, or its _BASE_, does not hold keys with values")
    return content


class _CheckedYaml(CfgNode):
    """Files that are read, and those that they are based on, without what YAML lets pass."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with super()._open_cfg(filename) as file:
            text = file.read()
        if _count(yaml.compose(text, yaml.SafeLoader), {}, filename) > _MOST_VALUES:
            raise InputError(f"config {filename}: aliases make more than {_MOST_VALUES} values")
        return io.StringIO(text)


def _count(node: yaml.Node | None, counts: dict[yaml.Node, float], filename: str) -> float:
    """The values that a node of a YAML file comes to, its aliases followed.

    Raises:
        InputError: a key is there twice.
    """
    if node not in counts:
        counts[node] = math.inf  # where an alias leads back to itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key, times in Counter(keys).items() if times > 1]
            if twice:
                line = node.start_mark.line + 1
                raise InputError(
                    f"config {filename}: {twice[0]} is twice in the block of line {line}"
                )
            children = itertools.chain(*children)
        counts[node] = 1 + sum(_count(child, counts, filename) for child in children)
    return counts[node]


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
        hint = did_you_mean(key, _names(cfg)) if isinstance(error, KeyError) else ""
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


def _names(cfg: CfgNode) -> set[str]:
    """All keys of a config, dotted, and all nodes."""
    parts = [key.split(".") for key, _ in config_items(cfg)]
    return {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}


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
