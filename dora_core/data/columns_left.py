"""Columns that an adapter does not use: carried, ignored, or unnamed. Nothing disappears unnamed.

An unnamed column that by its name or values may say how a row is to be read (system prompt, tools, images, context, winner, score, rank,
weight, margin, split, source) needs a decision, and the message gives the line to write. Any other unnamed column is carried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dora_core.config.adapter import Adapter, paths_of
from dora_core.config.path_syntax import Each, parse_path, quote_key
from dora_core.data.adapter.fields import UNMAPPED_BY_NAME
from dora_core.data.adapter.paths import CompiledPath
from dora_core.data.adapter.transcripts import hh_transcript
from dora_core.data.splits import split_named

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("system prompt", r"(custom_|default_)?sys(tem)?([_-]?(prompt|message|msg|instruction)s?)?"),
        ("tools", r"tools?|functions?|tool_calls|available_tools|function_call"),
        (
            "media",
            r"(images?|imgs?|pictures?|photos?|screenshots?|videos?|audios?|pixel_values)([_-]?(url|uri|path|file|file_name|bytes|base64|b64|id)s?)?",
        ),
        ("reasoning", r"reasoning(_content)?|thinking|thoughts?|cot|chain_of_thought|(chosen|rejected)_(reasoning|thinking)"),
        ("context", r"history|context|input|conversations?|dialogu?e?|messages|documents?|passages?|article|background|previous_turns"),
        (
            "winner",
            r"winner([_-].*)?|winning|(is_)?tied?|(is_|was_)?(flipped|swapped|swap|reversed|inverted)|preferred?|preference([_-]strength|_score)?|choice|better|best|.*better_response.*|labels?|vote|verdict|selected",
        ),
        (
            "prompt",
            r"(question|instruction|quer(y|ie)|problem|task_prompt|user_(prompt|input|message|query)|prompt_text|persona)s?",
        ),
        (
            "further response",
            r"(chosen|rejected|responses?|answers?|outputs?|completions?|candidates?|generations?)[_-]?([2-9]|[12][0-9])|(rejected|chosen)_(0|1|alt|other)|full_(chosen|rejected)",
        ),
        (
            "beginning of the responses",
            r"(initial|partial|previous|given|prefix)[_-]?(reason(ing)?[_-]?)?(steps?|responses?|answers?|solutions?|completions?)|((response|answer|assistant|completion)[_-])?(prefix|prefill)",
        ),
        ("split", r"split|subset_split|partition|fold|is_test|is_eval|datasplit"),
        ("weight", r"(sample_|example_|loss_)?weights?|importance"),
        ("margin", r"margins?|score_(diff|gap|margin)|reward_margin"),
        ("rank", r"(.*[_-])?rank(s|ing|ings)?([_-].*)?"),
        (
            "score",
            r"(.*[_-])?(scores?|ratings?|rewards?|rm_scores?|confidence|grades?|points|upvotes|stars|annotations?)([_-](a|b|0|1|2|chosen|rejected))?",
        ),
        (
            "source",
            r"(sources?|((chosen|rejected|a|b|response(_[a-z0-9])?)[_-])?(models?|source|policy|generator|author)([_-](name|[ab012]))?)",
        ),
    )
)
_LINES: dict[str, tuple[str, ...]] = {
    "system prompt": ("context: {{system: {0}}}",),
    "tools": ("context: {{tools: {0}}} with messages: {{tools: keep}}",),
    "media": (),
    "reasoning": (),
    "prompt": ("columns: {{prompt: {0}}}", "context: {{input: {0}}}"),
    "further response": (),
    "beginning of the responses": ("context: {{input: {0}}}",),
    "context": ("context: {{input: {0}}}", "context: {{history: {0}}}", "columns: {{prompt: {0}}}"),
    "messages": ("columns: {{prompt: {0}}}", "columns: {{response: {0}}}"),
    "winner": ("label: {{column: {0}, …}}",),
    "split": ("columns: {{split: {0}}}",),
    "weight": ("columns: {{weight: {0}}}",),
    "margin": (),
    "rank": ("label: {{ranks: {0}, base: 1}}",),
    "score": ("label: {{scores: [{0}]}}",),
    "source": ("columns: {{source: {0}}}",),
}
_SYSTEM_TEXT = re.compile(r"\s*(you are (a|an|the) |you're an? |act as |<<SYS>>)", re.IGNORECASE)
_WINNER_VALUES = frozenset(
    {"model_a", "model_b", "a", "b", "tie", "left", "right", "both_bad", "chosen", "rejected", "response_a", "response_b"}
)


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
_MAY_REPEAT = frozenset({"a prompt"})
_OF_PARTS = frozenset({"tools", "media", "system prompt"})
_EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")


@dataclass(frozen=True)
class Decision:
    """A column that needs a decision: what it looks like, and the lines of which one is to be written."""

    column: str
    looks_like: str
    lines: tuple[str, ...]

    def text(self) -> str:
        """The decision in words."""
        looks = "media, which a text policy cannot see" if self.looks_like == "media" else self.looks_like
        return f"column {self.column!r} looks like {looks}: write {' or '.join(f'`{line}`' for line in self.lines)}"


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
    open_columns = [column for column in columns if column not in used | carried | ignored]
    for column in open_columns:
        decision = None if column in switched_off else decision_of(column, [row.get(column) for row in sample], open_columns)
        if decision is not None and decision.looks_like in _MAY_REPEAT and _repeats(column, sample, used):
            decision = None
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


def decision_of(column: str, values: Sequence[Any], beside: Sequence[str] = ()) -> Decision | None:
    """The decision that an unused column needs by its name or values; None if it can be carried.

    Args:
        beside: unused columns of the input, among which the one of the other response is looked for.
    """
    given = [value for value in values if value not in _EMPTY]
    if not given:
        return None
    kind = next((kind for kind, pattern in _NAMES if pattern.fullmatch(column)), None) or _by_values(given)
    other = _other_side(column, beside)
    if kind is None and other is not None and all(_is_number(value) for value in given) and not _SIZE.search(column):
        kind = "score"
    if kind is None:
        return None
    lines = tuple(line.format(quote_key(column)) for line in _LINES[kind])
    side = _ONE_SIDE.match(column)
    if kind == "source" and side is not None and other is None:
        lines = (f"columns: {{{side[1].lower()}_source: {quote_key(column)}}}",)
    if other is not None and kind in _SIDED:
        first, second, sides = other
        keys = {name: quote_key(name) for name in (first, second)}
        lines = (_SIDED[kind].format(keys[first], keys[second], *sides),)
    return _decision(column, kind, lines, quote_key(column))


def _decision(column: str, kind: str, lines: tuple[str, ...], path: str) -> Decision:
    named = ("tools", "media", "reasoning", "messages")
    looks = f"the {kind}" if kind.startswith("beginning") else kind if kind in named else f"a {kind}"
    return Decision(column, looks, (*lines, *_kept(kind, path)))


def _decision_of_part(path: str, values: Sequence[Any]) -> Decision | None:
    """The decision that an unread key of a used struct needs: system prompts, tools and media belong to what is read beside them."""
    given = [value for value in values if value not in _EMPTY]
    key = parse_path(path)[0][-1]
    kind = next((kind for kind, pattern in _NAMES if isinstance(key, str) and pattern.fullmatch(key)), None)
    if (
        not given or kind is None or kind not in (_OF_PARTS if "[]" not in path else {"media"})
    ):  # a response's own prompt is how it was sampled
        return None
    return _decision(path, kind, tuple(line.format(path) for line in _LINES[kind]), path)


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
    rows = [(row, row[column]) for row in sample if row.get(column) not in _EMPTY]
    return all(isinstance(value, str) and any(value.strip() in text for text in _texts([row.get(c) for c in used])) for row, value in rows)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _by_values(given: Sequence[Any]) -> str | None:
    texts = [value for value in given if isinstance(value, str)]
    if len(texts) == len(given):
        forms = {text.strip().casefold() for text in texts}
        if "tie" in forms and len(forms) <= 6:
            return "winner"
        if forms <= _WINNER_VALUES and forms & {"model_a", "model_b", "left", "right", "tie", "response_a", "response_b"}:
            return "winner"
        if (
            len(forms) <= 6
            and all(len(form) < 16 and split_named(form, {}) for form in forms)
            and forms & {"train", "test", "validation", "val", "dev", "eval"}
        ):
            return "split"
        if all(_SYSTEM_TEXT.match(text) for text in texts):
            return "system prompt"
        if all(hh_transcript(text) is not None for text in texts):
            return "messages"
    if all(isinstance(value, list) and value and all(isinstance(item, dict) for item in value) for value in given):
        keys = {key for value in given for item in value for key in item}
        if {"role", "content"} <= keys or {"from", "value"} <= keys:
            return "messages"
        if "function" in keys or {"name", "parameters"} <= keys:
            return "tools"
    if all(isinstance(value, dict) and {"bytes", "path"} <= value.keys() for value in given) or any(
        isinstance(value, bytes) for value in given
    ):
        return "media"
    return None


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
