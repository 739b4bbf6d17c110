"""YAML and ``--set a.b=v`` as data, with the line of every key.

Stricter than YAML is by default: a duplicate key is an error, ``1e-3`` is a number, ``yes`` is a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from dora_core.errors import ConfigError

KeyPath = tuple[str | int, ...]
Override = tuple[str, Any]
"""A dotted key path and its new value."""


def dotted(path: Iterable[str | int]) -> str:
    """``data.train.0.path``: the form that ``--set`` takes."""
    return ".".join(map(str, path))


MAX_DEPTH = 40
MAX_VALUES = 100_000
"""Bounds on the size of a configuration; aliases count as often as they are used."""
_TAG = "tag:yaml.org,2002:"
_KINDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "null": "null", "seq": "list", "map": "mapping"}


class _Yaml12(yaml.SafeLoader):
    """SafeLoader of JSON's types, with the scalars of YAML 1.2: ``1e-3`` is a float, only true/false are booleans, a date is text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {MAX_DEPTH} deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):  # of Python's own int, float and so on
            problem = f"{str(node.value)[:40]!r} is not a {_KINDS[node.tag.removeprefix(_TAG)]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_undefined(self, node: yaml.Node) -> Any:
        problem = f"tag {node.tag.removeprefix(_TAG)!r}: a value is {', '.join(_KINDS.values())}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Yaml12.yaml_constructors = {f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in _KINDS} | {
    None: _Yaml12.construct_undefined
}
_Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}int", f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml12.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_yaml(text: str, place: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse one YAML document; returns it with the line (from 1) of every key path. Keys are text, values are of JSON's types.

    Raises:
        ConfigError: syntax error, duplicate key, an alias inside itself, a value of a kind or size that no configuration has; with the
            line.
    """
    try:
        loader = _Yaml12(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _index_lines(node, (), (), lines, place)
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{place}{line} is not valid YAML: {error.problem or error.context}",
            hint="look at that line and the one before it: a missing colon, quote or bracket, a tab, or uneven indentation",
        ) from None
    except yaml.YAMLError as error:  # characters YAML does not allow
        raise ConfigError(f"{place} is not valid YAML: {str(error).splitlines()[0]}", hint="save the file as UTF-8 text") from None


def _index_lines(node: yaml.Node, path: KeyPath, parents: tuple[int, ...], lines: dict[KeyPath, int], place: str) -> None:
    """Fill ``lines`` and refuse mistakes that YAML silently accepts: a duplicate key, an alias that contains itself or multiplies."""
    here = f"{place} line {node.start_mark.line + 1}"
    if id(node) in parents:
        raise ConfigError(f"{here}: an alias contains itself", hint="write the section out")
    if len(lines) > MAX_VALUES:
        raise ConfigError(f"{here}: more than {MAX_VALUES:,} values", hint="is this the configuration? an alias counts wherever it is used")
    parents = (*parents, id(node))
    if isinstance(node, yaml.ScalarNode):
        node.value = _whole_text(node.value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _index_lines(item, (*path, index), parents, lines, place)
    elif isinstance(node, yaml.MappingNode):
        own: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place} line {line}: a key must be text, not a list or mapping", hint="write it as `key: value`")
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
            name = key.value = _whole_text(key.value, f"{place} line {line}")
            if name in own:
                raise ConfigError(
                    f"{place} line {line}: {dotted((*path, name))} is given twice (first on line {own[name]})",
                    hint="keep one of them: with a duplicate key the later value would silently win",
                )
            own[name] = lines[(*path, name)] = line
            _index_lines(value, (*path, name), parents, lines, place)


def _whole_text(text: str, here: str) -> str:
    r"""Join a character that JSON escapes in two halves, as in ``"\ud83d\ude00"``, and that PyYAML leaves so.

    Raises:
        ConfigError: a half without the other, such as bytes of a command line that are not text.
    """
    try:
        return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ConfigError(f"{here}: half a character (U+D800 to U+DFFF) in a text", hint="save the file as UTF-8 text") from None


def parse_override(assignment: str) -> Override:
    """Parse one ``a.b=v`` of ``--set``; ``v`` is YAML.

    Raises:
        ConfigError: it has another form, or ``v`` is not valid YAML.
    """
    path, equals, text = _whole_text(assignment, "--set").partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {assignment[:80]}: expected key.path=value", hint="for example: --set align.objective.lambda=2.0")
    value, _ = read_yaml(text, f"--set {path}")
    return path, value


def apply_override(data: dict[str, Any], override: Override) -> None:
    """Set one value in raw configuration data, in place; list items go by index.

    Unknown keys are left for validation, which names the nearest one.

    Raises:
        ConfigError: a parent on the path is not a mapping, or a list without that item.
    """
    dotted_path, value = override
    *parents, last = dotted_path.split(".")
    target: Any = data
    for depth, (part, following) in enumerate(zip(parents, [*parents, last][1:], strict=True)):
        child = _item(target, part, dotted_path, ".".join(parents[:depth]))
        if child is None:
            child = [] if _index(following) is not None else {}
            _assign(target, part, child)
        target = child
    _item(target, last, dotted_path, ".".join(parents))
    _assign(target, last, value)


def _item(target: Any, part: str, dotted_path: str, parent: str) -> Any:
    """Return the child ``part`` of ``target``; ``None`` where it does not exist yet."""
    if isinstance(target, dict):
        return target.get(part)
    if isinstance(target, list):
        index = _index(part)
        if index is not None and index <= len(target):
            return target[index] if index < len(target) else None
        raise ConfigError(
            f"--set {dotted_path}: {parent} is a list of {len(target)}, it has no item {part!r}",
            hint=f"give an index from 0 to {len(target)}; {len(target)} appends",
        )
    raise ConfigError(
        f"--set {dotted_path}: {parent} is a single value ({str(target)[:40]!r}), it has no key {part!r}", hint=f"use --set {parent}=VALUE"
    )


def _assign(target: Any, part: str, value: Any) -> None:
    index = _index(part) if isinstance(target, list) else None
    if index is None:
        target[part] = value
    elif index == len(target):
        target.append(value)
    else:
        target[index] = value


def _index(part: str) -> int | None:
    return int(part) if re.fullmatch(r"[0-9]{1,6}", part) else None
