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


def dotted(path: Iterable[str | int]) -> str:
    """``data.train.0.path``: the form that ``--set`` takes."""
    return ".".join(map(str, path))


class _Yaml12(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: ``1e-3`` is a float, and only true/false are booleans."""


_Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_yaml(text: str, place: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse one YAML document; returns it with the line (from 1) of every key path.

    Raises:
        ConfigError: syntax error, duplicate key, or an alias inside itself; with the line.
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
    """Fill ``lines`` and refuse what YAML would silently accept: a key given twice, an alias that contains itself."""
    if id(node) in parents:
        raise ConfigError(f"{place} line {node.start_mark.line + 1}: an alias contains itself", hint="write the section out")
    parents = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _index_lines(item, (*path, index), parents, lines, place)
    elif isinstance(node, yaml.MappingNode):
        own: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in own:
                raise ConfigError(
                    f"{place} line {line}: {dotted((*path, str(key.value)))} is given twice (first on line {own[key.value]})",
                    hint="keep one of them: with a duplicate key the later value would silently win",
                )
            own[str(key.value)] = lines[(*path, str(key.value))] = line
            _index_lines(value, (*path, str(key.value)), parents, lines, place)


def apply_override(data: dict[str, Any], assignment: str) -> None:
    """Set one ``a.b=v`` in raw configuration data, in place; ``v`` is YAML, list items go by index.

    Unknown keys are left for validation, which names the nearest one.
    """
    dotted_path, equals, text = assignment.partition("=")
    if not equals or not all(dotted_path.split(".")):
        raise ConfigError(f"--set {assignment}: expected key.path=value", hint="for example: --set align.objective.lambda=2.0")
    value, _ = read_yaml(text, f"--set {dotted_path}")
    *parents, last = dotted_path.split(".")
    target: Any = data
    for depth, (part, following) in enumerate(zip(parents, [*parents, last][1:], strict=True)):
        child = _item(target, part, dotted_path, ".".join(parents[:depth]))
        if child is None:
            child = [] if following.isdigit() else {}
            _assign(target, part, child)
        target = child
    _item(target, last, dotted_path, ".".join(parents))
    _assign(target, last, value)


def _item(target: Any, part: str, dotted_path: str, parent: str) -> Any:
    """The child ``part`` of ``target``; ``None`` where it does not exist yet."""
    if isinstance(target, dict):
        return target.get(part)
    if isinstance(target, list):
        if part.isdigit() and int(part) <= len(target):
            return target[int(part)] if int(part) < len(target) else None
        raise ConfigError(
            f"--set {dotted_path}: {parent} is a list of {len(target)}, it has no item {part!r}",
            hint=f"give an index from 0 to {len(target)}; {len(target)} appends",
        )
    raise ConfigError(
        f"--set {dotted_path}: {parent} is a single value ({target!r}), it has no key {part!r}", hint=f"use --set {parent}=VALUE"
    )


def _assign(target: Any, part: str, value: Any) -> None:
    if isinstance(target, list) and int(part) == len(target):
        target.append(value)
    else:
        target[int(part) if isinstance(target, list) else part] = value
