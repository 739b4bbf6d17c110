"""YAML and ``--set a.b=v`` as data, with the line of every key.

Stricter than YAML is by default: a duplicate key is an error, ``1e-3`` is a number, ``yes`` is a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from dora_core.errors import ConfigError

KeyPath = tuple[str | int, ...]
Override = tuple[str, Any]
"""A dotted key path and its new value."""


def dotted(path: Iterable[str | int]) -> str:
    """``data.train.0.path``: the form that ``--set`` takes; a key that holds a dot, a quote or ``=`` is quoted."""
    return ".".join(json.dumps(part, ensure_ascii=False) if re.search(r"[.=\"]", part) else part for part in map(str, path))


_KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*'|[^."'=][^.=]*)(?=[.=]|$)""")
"""One key of a dotted path: in quotes, or up to the next dot."""


def split_path(path: str) -> list[str]:
    """Split a dotted path into its keys: the inverse of :func:`dotted`; ``'…'`` quotes, too. Empty for a malformed path."""
    keys, end = _scan(path)
    return keys if end == len(path) else []


def _scan(text: str) -> tuple[list[str], int]:
    """Read keys from the beginning of ``text``; returns them and the position behind the last one."""
    keys, at = list[str](), 0
    while found := _KEY.match(text, at):
        key = found[0]
        try:
            keys.append(json.loads(key) if key[0] == '"' else key[1:-1] if key[0] == "'" else key)
        except ValueError:  # an escape that JSON does not have
            return [], 0
        at = found.end()
        if text[at : at + 1] != ".":
            return keys, at
        at += 1
    return [], 0  # nothing, or a dot at the end


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


QUOTED = "--set 'calibration.shares.\"gpt-3.5\"=0.5'"
"""The form of a key that holds a dot."""


def parse_override(assignment: str) -> Override:
    """Parse one ``a.b=v`` of ``--set``; ``v`` is YAML, and a key that holds a dot is quoted: ``calibration.shares."gpt-3.5"=0.5``.

    Raises:
        ConfigError: it has another form, or ``v`` is not valid YAML.
    """
    whole = _whole_text(assignment, "--set")
    keys, end = _scan(whole)
    path, equals, text = whole[:end], whole[end : end + 1], whole[end + 1 :]
    if equals != "=" or not all(keys) or not split_path(path):
        raise ConfigError(
            f"--set {assignment[:80]}: expected key.path=value",
            hint="for example: --set align.objective.lambda=2.0; a key that holds a dot in quotes: " + QUOTED,
        )
    value, _ = read_yaml(text, f"--set {path}")
    return path, value


def apply_override(data: dict[str, Any], override: Override, model: type[BaseModel] | None = None) -> None:
    """Set one value in raw configuration data, in place; list items go by index.

    Of the keys that are there, the one that covers most of the path is taken, so a name that holds dots needs no quotes where it exists. In
    a free mapping of ``model`` (``calibration.shares``) the rest of the path is one key. Unknown keys are left for validation, which names
    the nearest one.

    Raises:
        ConfigError: a parent on the path is not a mapping, or a list without that item.
    """
    dotted_path, value = override
    rest, above, target = split_path(dotted_path), list[str](), data
    while True:
        count = _covered(target, rest, above, model)
        part, rest = ".".join(rest[:count]), rest[count:]
        child = _item(target, part, dotted_path, dotted(above))
        above.append(part)
        if not rest:
            break
        if child is None:
            child = [] if _index(rest[0]) is not None and not _is_free_mapping(model, above) else {}
            _assign(target, part, child)
        target = child
    _assign(target, part, value)


def _covered(target: Any, rest: list[str], above: list[str], model: type[BaseModel] | None) -> int:
    """Number of parts of the path that are the next key."""
    if not isinstance(target, dict):
        return 1
    if _is_free_mapping(model, above):
        return len(rest)
    return next((count for count in range(len(rest), 0, -1) if ".".join(rest[:count]) in target), 1)


def _is_free_mapping(model: Any, path: Iterable[str]) -> bool:
    """Whether the configuration has a mapping from names to single values at ``path``."""
    current = [model]
    for part in path:
        members = [member for annotation in current for member in _alternatives(annotation)]
        current = []
        for member in members:
            if isinstance(member, type) and issubclass(member, BaseModel):
                current += [field.annotation for name, field in member.model_fields.items() if part in (name, field.alias)]
            elif get_origin(member) in (list, dict):
                current.append(get_args(member)[-1])
    mappings = [m for annotation in current for m in _alternatives(annotation) if get_origin(m) is dict]
    values = [value for mapping in mappings for value in _alternatives(get_args(mapping)[1])]
    return bool(values) and not any(get_origin(v) in (list, dict) or (isinstance(v, type) and issubclass(v, BaseModel)) for v in values)


def _alternatives(annotation: Any) -> list[Any]:
    """Members of a union, nested ones and those inside ``Annotated`` included; any other annotation alone."""
    if get_origin(annotation) in (None, list, dict):
        return [annotation]
    return [member for each in get_args(annotation) for member in _alternatives(each)]


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
            hint=f"give an index from 0 to {len(target)}, {len(target)} appends; a key that holds a dot needs quotes: {QUOTED}",
        )
    raise ConfigError(
        f"--set {dotted_path}: {parent} is a single value ({str(target)[:40]!r}), it has no key {part!r}",
        hint=f"use --set {parent}=VALUE; a key that holds a dot needs quotes: {QUOTED}",
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
