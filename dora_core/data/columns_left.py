"""Columns that an adapter does not use: carried, ignored, or unnamed. Nothing disappears unnamed.

An unnamed column that by its name or values may say how a row is to be read (system prompt, tools, images, context, winner, score, rank,
weight, margin, split, source) needs a decision, and the message gives the line to write. Any other unnamed column is carried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dora_core.config.adapter import Adapter, paths_of
from dora_core.config.path_syntax import Each, in_flow, parse_path, quote_key
from dora_core.data.adapter.fields import UNMAPPED_BY_NAME
from dora_core.data.adapter.paths import CompiledPath
from dora_core.data.column_looks import kind_by_name, kind_by_values, role_and_text
from dora_core.data.withdrawn import marks_in

_LINES: dict[str, tuple[str, ...]] = {
    "system prompt": ("context: {{system: {0}}}",),
    "tools": ("context: {{tools: {0}}} with messages: {{tools: keep}}",),
    "prompt": ("columns: {{prompt: {0}}}", "context: {{input: {0}}}"),
    "beginning of the responses": ("context: {{input: {0}}}",),
    "context": ("context: {{input: {0}}}", "context: {{history: {0}}}", "columns: {{prompt: {0}}}"),
    "messages": ("columns: {{prompt: {0}}}", "columns: {{response: {0}}}"),
    "split": ("columns: {{split: {0}}}",),
    "weight": ("columns: {{weight: {0}}}",),
}
"""Lines that read a column, whatever the shape of the rows; :func:`_label_lines` has those that depend on it."""
_WINNER_LINES = {
    "pair": "shape: ab with columns: {{a: {1}, b: {2}}} and label: {{column: {0}, a: […], b: […], tie: […]}}",
    "list": "label: {{column: {0}, index_base: 0}}",
    "ab": "label: {{column: {0}, a: […], b: […], tie: […]}}",
    "rows": "label: {{column: {0}, true: […], false: […]}}",
    "unpaired": "label: {{column: {0}, true: […], false: […]}}",
}
_FEW = 6
"""Most values of a column that are names of outcomes."""


_SIDES: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("chosen", "rejected"), ("chosen", "rejected")),
    (("preferred", "dispreferred"), ("chosen", "rejected")),
    (("a", "b"), ("a", "b")),
)
"""Parts of names by which the columns of two responses differ, and the names of the two sides in the configuration."""
_SIDED = {
    "score": "label: {{scores: [{{{2}: {0}, {3}: {1}}}]}}",
    "source": "columns: {{{2}_source: {0}, {3}_source: {1}}}",
    "winner": "label: {{scores: [{{{2}: {0}, {3}: {1}}}]}}",
}
"""Lines for two columns of which each belongs to one response."""
_ONE_SIDE = re.compile(r"(chosen|rejected)[_-]", re.IGNORECASE)
"""Beginning of the name of a column that belongs to one response alone."""
_SIZE = re.compile(r"len(gth)?s?(\b|_)|tokens?|words?|chars?|count|num|(\b|_)ids?(\b|_)|time|seconds|idx|index|date|utc", re.IGNORECASE)
"""Numbers about a response that say nothing about its quality."""
_MAY_REPEAT = frozenset({"a prompt", "a context", "messages"})
_WITHDRAWN = "a mark of rows that do not count"
_BEST = re.compile(r"(.*[_-])?(best|gold|correct|answer|chosen|preferred|selected|target|winning|top)([_-].*)?", re.IGNORECASE)
"""Names of columns that may hold the index of the best response."""
_OF_PARTS = frozenset({"tools", "media", "system prompt"})
_EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")


@dataclass(frozen=True)
class Decision:
    """A column that needs a decision: what it looks like, and the lines of which one is to be written."""

    column: str
    looks_like: str
    lines: tuple[str, ...]
    marks: tuple[Any, ...] = ()
    """Values by which rows of the column are withdrawn."""

    def text(self) -> str:
        """The decision in words."""
        looks = "media, which a text policy cannot see" if self.looks_like == "media" else self.looks_like
        note = " (number i must be the rank of response i, not the place of the i-th best)" if self.looks_like == "a rank" else ""
        return f"column {self.column!r} looks like {looks}{note}: write {' or '.join(f'`{line}`' for line in self.lines)}"


@dataclass(frozen=True)
class ColumnsLeft:
    """What becomes of every column: used, carried, ignored, or to be decided; ``unread``: parts of used columns that nothing reads."""

    used: tuple[str, ...]
    carried: tuple[str, ...]
    ignored: tuple[str, ...]
    unnamed: tuple[str, ...]
    decisions: tuple[Decision, ...]
    unread: tuple[str, ...]


def columns_left(adapter: Adapter, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> ColumnsLeft:
    """What becomes of every column.

    Args:
        adapter: with its preset expanded.
        columns: of the file, all.
        sample: some rows; columns that are null in all of them need no decision.
    """
    there = frozenset(columns)
    paths = [CompiledPath(path, there) for _, path in paths_of(adapter)]
    used = {root for path in paths for root in path.roots}
    used |= {name for name in by_name(adapter, columns)}
    switched_off = {name for name in type(adapter.columns).model_fields if getattr(adapter.columns, name) is False}
    switched_off |= {name for name in type(adapter.context).model_fields if getattr(adapter.context, name) is False}
    carried = {root for path in adapter.carry for root in CompiledPath(path, there).roots}
    ignored = {root for path in adapter.ignore for root in CompiledPath(path, there).roots} - used - carried
    ignored |= {column for column in columns if not column.strip()} - used  # the index of a CSV file, which no path can name
    unnamed, decisions = [], []
    given = {column for column in used if any(row.get(column) not in _EMPTY for row in sample)}
    unlabelled = _unlabelled_list(adapter, given, there)
    open_columns = [column for column in columns if column not in used | carried | ignored]
    for column in open_columns:
        decision = None if column in switched_off else decision_of(column, [row.get(column) for row in sample], open_columns, adapter)
        if decision is not None and decision.looks_like in _MAY_REPEAT and _repeats(column, sample, used):
            decision = None
        if decision is None and unlabelled is not None and column not in switched_off:
            decision = _label_of_list(column, unlabelled, sample)
        if decision is None and column not in switched_off:
            decision = _second(column, used, sample)
        if decision is None:
            unnamed.append(column)
        else:
            decisions.append(decision)
    unread = _unread(adapter, paths, sample, there)
    decisions += [decision for path, values in unread.items() if (decision := _decision_of_part(path, values)) is not None]
    order = {column: i for i, column in enumerate(columns)}

    def ordered(names: set[str]) -> tuple[str, ...]:
        return tuple(sorted(names & there, key=order.__getitem__))

    return ColumnsLeft(
        ordered(used),
        ordered(carried - used),
        ordered(ignored),
        tuple(unnamed),
        tuple(decisions),
        tuple(unread),
    )


def by_name(adapter: Adapter, columns: Sequence[str]) -> list[str]:
    """Columns that are read because they have the name of a canonical field of the adapter's shape."""
    beside: tuple[str, ...] = ("id", "prompt", "task", "split")
    of_shape = {
        "pair": ("chosen", "rejected", "chosen_source", "rejected_source"),
        "list": ("responses", "rewards", "ranks", "sources"),
        "ab": ("a", "b", "a_source", "b_source"),
        "unpaired": ("response",),
        "rows": ("response",),
        "single": ("response",),
        "tree": (),
        None: ("chosen", "rejected", "chosen_source", "rejected_source", "responses", "rewards", "ranks", "sources"),
    }[adapter.shape]
    if adapter.shape == "tree":
        beside = ("id", "task", "split")
    names = [name for name in (*beside, *of_shape) if name in columns and name not in UNMAPPED_BY_NAME]
    if adapter.label is not None:
        names = [name for name in names if name not in ("rewards", "ranks")]
    return [name for name in names if getattr(adapter.columns, name) is None]


def decision_of(column: str, values: Sequence[Any], beside: Sequence[str] = (), adapter: Adapter | None = None) -> Decision | None:
    """The decision that an unused column needs by its name or values; None if it can be carried.

    Args:
        beside: unused columns of the input, among which the one of the other response is looked for.
        adapter: of the input, by whose shape the lines are written; None: lines of the shape ab.
    """
    given = [value for value in values if value not in _EMPTY]
    if not given:
        return None
    marks = marks_in(column, values)
    if marks:
        named = yaml.safe_dump(marks, default_flow_style=True, width=1000).strip()
        line = f"leave_out: {{{quote_key(column)}: {named}}}"
        return Decision(column, _WITHDRAWN, (line, *_kept("", quote_key(column))), tuple(marks))
    kind = kind_by_name(column) or kind_by_values(given)
    other = _other_side(column, beside)
    if kind is None and other is not None and all(_is_number(value) for value in given) and not _SIZE.search(column):
        kind = "score"
    if kind is None:
        return None
    lines = tuple(_lines(kind, column, given, adapter))
    side = _ONE_SIDE.match(column)
    if kind == "source" and side is not None and other is None:
        lines = (f"columns: {{{side[1].lower()}_source: {quote_key(column)}}}",)
    if other is not None and kind in _SIDED:
        first, second, sides = other
        keys = {name: quote_key(name) for name in (first, second)}
        lines = (_SIDED[kind].format(keys[first], keys[second], *sides),)
    return _decision(column, kind, lines, quote_key(column))


def _lines(kind: str, column: str, given: Sequence[Any], adapter: Adapter | None) -> Iterator[str]:
    """Lines that read a column of this kind, of which only those are given that can read its values."""
    path, structured = quote_key(column), any(isinstance(value, list | dict) for value in given)
    if kind in ("winner", "score", "rank", "source"):
        yield from _label_lines(kind, path, given, adapter)
    for line in _LINES.get(kind, ()):
        if structured and "input:" in line:
            continue
        dialect = role_and_text(given[0]) if structured else None
        keys = "" if dialect is None else f" with messages: {{role: {quote_key(dialect[0])}, content: {quote_key(dialect[1])}}}"
        yield line.format(path) + keys


def _label_lines(kind: str, path: str, given: Sequence[Any], adapter: Adapter | None) -> Iterator[str]:
    shape = "ab" if adapter is None else adapter.shape or "pair"
    columns = None if adapter is None else adapter.columns
    lists = all(isinstance(value, list) for value in given)
    numbers = path if not lists else _numbers_in(path, given)
    if kind == "source":
        if shape == "list" and lists:
            yield f"columns: {{sources: {path}}}"
        elif all(isinstance(value, str) for value in given):
            yield f"columns: {{source: {path}}}"
    elif kind == "winner" and not lists and shape in _WINNER_LINES:
        sides = [getattr(columns, name, None) or name for name in ("chosen", "rejected")]
        yield _WINNER_LINES[shape].format(path, *sides)
        if shape == "pair" and len({str(value) for value in given}) <= _FEW:
            yield f"leave_out: {{{path}: […]}}"
    elif kind == "winner" and shape == "ab":
        yield _WINNER_LINES["ab"].format(path)
    elif kind in ("score", "rank") and numbers is not None and lists == (shape != "rows") and shape not in ("unpaired", "tree", "single"):
        zero = any(number == 0 for value in given for number in (value if lists else [value]))
        yield f"label: {{scores: [{numbers}]}}" if kind == "score" else f"label: {{ranks: {numbers}, base: {0 if zero else 1}}}"


def _numbers_in(path: str, lists: Sequence[list[Any]]) -> str | None:
    """Path of the numbers in lists: their elements, or one key of their elements."""
    items = [item for value in lists for item in value if item is not None]
    if not any(isinstance(item, dict) for item in items):
        return path
    keys = [key for item in items if isinstance(item, dict) for key in item if isinstance(key, str)]
    key = next((key for key in keys if kind_by_name(key) in ("score", "rank")), None)
    return None if key is None else in_flow(f"{path}[].{quote_key(key)}")


def _unlabelled_list(adapter: Adapter, given: set[str], there: frozenset[str]) -> CompiledPath | None:
    """Path of the responses of rows whose list has neither a label nor rewards: they hold no preference unless another column does."""
    if adapter.shape not in ("list", None) or adapter.label is not None or {"chosen", "rewards", "ranks"} & given:
        return None
    mapped = adapter.columns.responses
    if not isinstance(mapped, str) and "responses" not in there:
        return None
    return None if adapter.columns.rewards or adapter.columns.ranks else CompiledPath(mapped or "responses", there)


def _label_of_list(column: str, responses: CompiledPath, sample: Sequence[Mapping[str, Any]]) -> Decision | None:
    """The decision for a column that may say which response of an unlabelled list is the best: a number for each, or the index of one."""
    rows = [(row[column], responses.get(dict(row))) for row in sample if row.get(column) not in _EMPTY]
    path = quote_key(column)
    lists = [(value, texts) for value, texts in rows if isinstance(value, list) and isinstance(texts, list)]
    if lists and all(len(value) == len(texts) and all(map(_is_number, value)) for value, texts in lists) and len(lists) == len(rows):
        lines = (f"label: {{scores: [{path}]}}", f"label: {{scores: [{path}], weights: [-1]}}")
        return _decision(column, "score", lines, path)
    indices = [value for value, texts in rows if type(value) is int and isinstance(texts, list) and 0 <= value <= len(texts)]
    if rows and len(indices) == len(rows) and _BEST.fullmatch(column):
        return _decision(column, "winner", (f"label: {{column: {path}, index_base: {0 if 0 in indices else '0 or 1'}}}",), path)
    return None


def _second(column: str, used: set[str], sample: Sequence[Mapping[str, Any]]) -> Decision | None:
    """The decision for a column whose name differs from a column that is read in case or punctuation alone, and that says something
    else."""
    twin = next((name for name in sorted(used) if name != column and _folded(name) == _folded(column)), None)
    if twin is None or not any(row.get(column) not in _EMPTY for row in sample) or _repeats(column, sample, used):
        return None
    return Decision(column, f"a second {twin!r}", (f"carry: [{quote_key(column)}]", f"ignore: [{quote_key(column)}]"))


def _folded(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _decision(column: str, kind: str, lines: tuple[str, ...], path: str) -> Decision:
    named = ("tools", "media", "reasoning", "messages")
    looks = f"the {kind}" if kind.startswith("beginning") else kind if kind in named else f"a {kind}"
    return Decision(column, looks, (*lines, *_kept(kind, path)))


def _decision_of_part(path: str, values: Sequence[Any]) -> Decision | None:
    """The decision that an unread key of a used struct needs: system prompts, tools and media belong to what is read beside them."""
    given = [value for value in values if value not in _EMPTY]
    key = parse_path(path)[0][-1]
    kind = kind_by_name(key) if isinstance(key, str) else None
    if (
        not given or kind is None or kind not in (_OF_PARTS if "[]" not in path else {"media"})
    ):  # a response's own prompt is how it was sampled
        return None
    return _decision(path, kind, tuple(line.format(in_flow(path)) for line in _LINES.get(kind, ())), in_flow(path))


def _other_side(column: str, beside: Sequence[str]) -> tuple[str, str, tuple[str, str]] | None:
    """Columns of the first and of the second response, one of which this is, and the names of the sides; None if there are no two."""
    for sides, names in _SIDES:
        for side, other in (sides, sides[::-1]):
            for pattern, form in ((rf"(.*[_-])?{side}", "{0}{1}"), (rf"{side}([_-].*)", "{1}{0}")):
                match = re.fullmatch(pattern, column, re.IGNORECASE)
                if match is None:
                    continue
                written = column[len(match[1] or "") :] if form == "{0}{1}" else column[: -len(match[1])]
                twin = form.format(match[1] or "", _in_case_of(other, written))
                if twin in beside and twin != column:
                    return (column, twin, names) if side == sides[0] else (twin, column, names)
    return None


def _in_case_of(word: str, like: str) -> str:
    return word.upper() if like.isupper() else word


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kept(kind: str, name: str) -> tuple[str, ...]:
    return (f"ignore: [{name}]",) if kind == "media" else (f"carry: [{name}]", f"ignore: [{name}]")


def _repeats(column: str, sample: Sequence[Mapping[str, Any]], used: set[str]) -> bool:
    """Whether a column only repeats texts of the columns that are read, in every row of the sample."""
    rows = [(row, list(_texts(row[column]))) for row in sample if row.get(column) not in _EMPTY]
    if not all(texts for _, texts in rows):
        return False
    return all(any(text.strip() in other for other in _texts([row.get(c) for c in used])) for row, texts in rows for text in texts)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        keys = {"role", "from"} & value.keys() if {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys() else set()
        for key, inner in value.items():
            if key not in keys:
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _unread(
    adapter: Adapter, paths: Sequence[CompiledPath], sample: Sequence[Mapping[str, Any]], there: frozenset[str]
) -> dict[str, list[Any]]:
    """Keys of used structs that no path reads, as ``completions[].critique``, with their values; messages are read whole."""
    named = [*paths, *(CompiledPath(path, there) for path in (*adapter.carry, *adapter.ignore))]
    read: dict[str, set[str]] = {}
    whole: set[str] = set()
    for path in named:
        for steps in path.steps():
            keys = [step for step in steps[1:] if isinstance(step, str)]
            if keys:
                read.setdefault(str(steps[0]), set()).add(keys[0])
            elif not any(isinstance(step, Each | int) for step in steps[1:]):
                whole.add(str(steps[0]))
    found: dict[str, list[Any]] = {}
    for root in sorted(read.keys() - whole):
        for row in sample:
            value = row.get(root)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Mapping):
                    mark = "[]" if isinstance(value, list) else ""
                    for key in item:
                        if key not in read[root] and item[key] is not None:
                            found.setdefault(f"{quote_key(root)}{mark}.{quote_key(str(key))}", []).append(item[key])
    return found
