"""Read the YAML of a preset strictly, so that no value is silently another one than it looks like.

YAML 1.1, which PyYAML reads, takes `no` for false, `1:30` for 90, `010` for 8, `1_000` for 1000, a date for an
object, and the last of two equal keys. Here such a scalar stays text, which a field for a number or a flag then
refuses, and a key that is given twice is an error. Merge keys (`<<`) and anchors work as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from seerbench.errors import ConfigError
from seerbench.settings import printable

_TAG = "tag:yaml.org,2002:"
# The types of plain scalars, by tag. An integer of more digits than 64 bits hold stays text.
_SCALARS = {
    _TAG + "null": re.compile(r"~|null|Null|NULL|"),
    _TAG + "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    _TAG + "int": re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"),
    _TAG + "float": re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    _TAG + "merge": re.compile(r"<<"),
}
MAX_NODES = 50_000  # aliases included: a small file of nested aliases can stand for billions
MAX_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the plain scalars of _SCALARS alone."""


_Loader.yaml_implicit_resolvers = {
    None: [(tag, re.compile(rf"(?:{pattern.pattern})\Z")) for tag, pattern in _SCALARS.items()]
}


def parse_yaml(text: str, where: str) -> Any:
    """Return the content of one YAML document: dicts with text as keys, lists, text, numbers, flags and None.

    Raises ConfigError, with `where` and the place, for text that is no YAML, several documents, a key that is given
    twice or is no text, a tag, or aliases that contain themselves or stand for too much.
    """
    try:
        root = yaml.compose(text, _Loader)
        return None if root is None else _Converter(where).value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where} is not YAML{at}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply") from None


class _Converter:
    """Makes plain values of nodes, and counts them."""

    def __init__(self, where: str) -> None:
        self.where, self.nodes = where, 0

    def value(self, node: yaml.Node, place: tuple[str, ...]) -> Any:
        self.nodes += 1
        if len(place) > MAX_DEPTH:
            raise self._error(node, place[:3], "nested too deeply, or an alias that contains itself")
        if self.nodes > MAX_NODES:
            raise self._error(node, place, f"more than {MAX_NODES} values, aliases included")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*place, str(number))) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        raise self._error(node, place, f"the tag {_short(node.tag)} is not supported; leave it out")

    def _scalar(self, node: yaml.ScalarNode, place: tuple[str, ...]) -> Any:
        if node.tag in (_TAG + "str", _TAG + "merge"):
            return node.value
        pattern = _SCALARS.get(node.tag)
        if pattern is None or not pattern.fullmatch(node.value):
            text = f"the tag {_short(node.tag)} of {node.value!r} is not supported; leave it out"
            raise self._error(node, place, text)
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool":
            return node.value.lower() == "true"
        if node.tag == _TAG + "int":
            return int(node.value)
        return float(re.sub(r"\.(?=[in])", "", node.value.lower()))  # .inf and .nan

    def _mapping(self, node: yaml.MappingNode, place: tuple[str, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, item in node.value:
            key = self.value(key_node, place)
            if not isinstance(key, str):
                raise self._error(key_node, place, f"the key {key!r} is no text; write it in quotes")
            if key in lines:
                both = f"lines {lines[key]} and {key_node.start_mark.line + 1}"
                at = printable("/".join((*place, key)))
                raise ConfigError(f"{self.where}: {at}: this key is given twice ({both})")
            lines[key] = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                for found in self._merged(item, place):
                    merged = found | merged  # the first of several mappings counts
            else:
                own[key] = self.value(item, (*place, key))
        return merged | own

    def _merged(self, node: yaml.Node, place: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                raise self._error(part, place, "<< takes a mapping or a list of mappings")
            yield self._mapping(part, (*place, "<<"))

    def _error(self, node: yaml.Node, place: tuple[str, ...], text: str) -> ConfigError:
        at = f"{printable('/'.join(place))}: " if place else ""
        return ConfigError(f"{self.where}: {at}line {node.start_mark.line + 1}: {text}")


def _short(tag: str) -> str:
    """Return a tag as it is written."""
    return tag.replace(_TAG, "!!")
