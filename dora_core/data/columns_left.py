"""Columns that an adapter does not use: carried, ignored, or unnamed. Nothing disappears unnamed.

An unnamed column that by its name or values may say how a row is to be read (system prompt, tools, images, context, winner, score, rank,
weight, margin, split, source) needs a decision, and the message gives the line to write. Any other unnamed column is carried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dora_core.config.adapter import Adapter, paths_of
from dora_core.config.path_syntax import Each, quote_key
from dora_core.data.adapter.base import UNMAPPED_BY_NAME, split_named
from dora_core.data.adapter.paths import CompiledPath
from dora_core.data.adapter.transcripts import hh_transcript

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("system prompt", r"(custom_|default_)?sys(tem)?([_-]?(prompt|message|msg|instruction)s?)?"),
        ("tools", r"tools?|functions?|tool_calls|available_tools|function_call"),
        ("media", r"images?|videos?|audios?|pixel_values|image_(url|path|file|bytes)s?"),
        ("reasoning", r"reasoning(_content)?|thinking|thoughts?|cot|chain_of_thought|(chosen|rejected)_(reasoning|thinking)"),
        ("context", r"history|context|input|conversations?|dialogu?e?|messages|documents?|passages?|article|background|previous_turns"),
        (
            "winner",
            r"winner|winning|preferred?|preference([_-]strength|_score)?|choice|better|best|.*better_response.*|labels?|vote|verdict|selected",
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
    unnamed, decisions = [], []
    for column in columns:
        if column in used | carried | ignored:
            continue
        decision = None if column in switched_off else decision_of(column, [row.get(column) for row in sample])
        if decision is None:
            unnamed.append(column)
        else:
            decisions.append(decision)
    order = {column: i for i, column in enumerate(columns)}

    def ordered(names: set[str]) -> tuple[str, ...]:
        return tuple(sorted(names & there, key=order.__getitem__))

    return ColumnsLeft(
        ordered(used),
        ordered(carried - used),
        ordered(ignored),
        tuple(unnamed),
        tuple(decisions),
        tuple(_unread(adapter, paths, sample, there)),
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


def decision_of(column: str, values: Sequence[Any]) -> Decision | None:
    """The decision that an unused column needs by its name or values; None if it can be carried."""
    given = [value for value in values if value is not None and value not in ("", [], {}, "[]", "{}", "null")]
    if not given:
        return None
    kind = next((kind for kind, pattern in _NAMES if pattern.fullmatch(column)), None) or _by_values(given)
    if kind is None:
        return None
    name = quote_key(column)
    return Decision(
        column,
        f"a {kind}" if kind not in ("tools", "media", "reasoning", "messages") else kind,
        (*(line.format(name) for line in _LINES[kind]), *_kept(kind, name)),
    )


def _kept(kind: str, name: str) -> tuple[str, ...]:
    return (f"ignore: [{name}]",) if kind == "media" else (f"carry: [{name}]", f"ignore: [{name}]")


def _by_values(given: Sequence[Any]) -> str | None:
    texts = [value for value in given if isinstance(value, str)]
    if len(texts) == len(given):
        forms = {text.strip().casefold() for text in texts}
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


def _unread(adapter: Adapter, paths: Sequence[CompiledPath], sample: Sequence[Mapping[str, Any]], there: frozenset[str]) -> list[str]:
    """Keys of used structs that no path reads, as ``completions[].critique``; messages are read whole."""
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
    found: dict[str, None] = {}
    for root in sorted(read.keys() - whole):
        for row in sample:
            value = row.get(root)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Mapping):
                    mark = "[]" if isinstance(value, list) else ""
                    found.update(
                        dict.fromkeys(
                            f"{quote_key(root)}{mark}.{quote_key(str(k))}" for k in item if k not in read[root] and item[k] is not None
                        )
                    )
    return list(found)
