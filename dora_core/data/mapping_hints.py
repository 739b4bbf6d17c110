"""Lines that would map an input whose schema no preset knows, guessed from its columns and values, for the end of an error.

Nothing is read by a guess: it is shown, with what the user has to fill in as ``…``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dora_core.config.path_syntax import in_flow, quote_key
from dora_core.data.column_looks import kind_by_name

Sample = Sequence[Mapping[str, Any]]

_TWO_RESPONSES = (
    (("chosen", "rejected"), "pair"),
    (("preferred", "dispreferred"), "pair"),
    (("accepted", "rejected"), "pair"),
    (("good", "bad"), "pair"),
    (("better", "worse"), "pair"),
    (("winning", "losing"), "pair"),
    (("winner", "loser"), "pair"),
    (("positive", "negative"), "pair"),
    (("pos", "neg"), "pair"),
    (("w", "l"), "pair"),
    (("edited", "original"), "pair"),
    (("a", "b"), "ab"),
    (("0", "1"), "ab"),
    (("1", "2"), "ab"),
)
"""Parts of the names of two columns with responses, and the shape that reads them."""
_PROMPTS = (
    *("question", "instruction", "query", "user_prompt", "user_input", "input", "problem", "context", "history", "dialog", "dialogue"),
    *("conversation", "conversations", "messages", "contents", "post", "document", "article"),
)
_RESPONSE = re.compile(r"(model[_-]?)?(response|completion|output|answer|generation|reply)", re.IGNORECASE)
_TEXT_KEYS = ("text", "response", "answer", "output", "completion", "content", "generation", "body", "reply")
_FEW = 6
_GENERAL = "`columns: {chosen: …, rejected: …}`, `columns: {responses: …}`, one response with an approval (`shape: unpaired`) "


def mapping_hint(columns: Sequence[str], sample: Sample) -> str:
    """Lines for an input with these columns, as the middle of a sentence; general ones where nothing is recognised."""
    for lines in (_inside(columns, sample), _two(columns, sample), _several(columns, sample), _one(columns, sample)):
        if lines:
            return lines + ", "
    return _GENERAL


def _inside(columns: Sequence[str], sample: Sample) -> str:
    """Lines for rows that lie in a struct, as ``row.chosen``."""
    for column in columns:
        values = [row.get(column) for row in sample if row.get(column) is not None]
        keys = list(values[0]) if values and isinstance(values[0], dict) else []
        if {"chosen", "rejected"} <= set(keys):
            named = [key for key in ("prompt", "chosen", "rejected") if key in keys]
            return f"`columns: {{{', '.join(f'{key}: {quote_key(column)}.{key}' for key in named)}}}`"
    return ""


# ----------------------------------------------------------------------------------------------------- two responses


def _two(columns: Sequence[str], sample: Sample) -> str:
    for sides, shape in _TWO_RESPONSES:
        for column in columns:
            if not re.search("[A-Za-z]", column) or (shape == "ab" and re.match("chosen|rejected", column, re.IGNORECASE)):
                continue
            twin = _twin(column, sides, columns)
            if twin is None or not all(_may_be_response(row.get(name)) for row in sample for name in (column, twin)):
                continue
            first, second = ("chosen", "rejected") if shape == "pair" else ("a", "b")
            fields = f"{_prompt_field(columns, sample, {column, twin})}{first}: {quote_key(column)}, {second}: {quote_key(twin)}"
            label = "" if shape == "pair" else f" and {_label(columns, sample, {column, twin})}"
            return f"`shape: {shape}` with `columns: {{{fields}}}`{label}"
    return ""


def _twin(column: str, sides: tuple[str, str], columns: Sequence[str]) -> str | None:
    """The column whose name has the second side where this one has the first, in the same case."""
    for change in (str, str.upper, str.capitalize):
        one, other = change(sides[0]), change(sides[1])
        pattern = rf"(?<![A-Za-z0-9]){one}(?![A-Za-z0-9])|(?<=[a-z]){one}$"
        twin = re.sub(pattern, other, column.replace("_", " ")).replace(" ", "_")
        if twin != column and twin in columns:
            return twin
    return None


def _prompt_field(columns: Sequence[str], sample: Sample, taken: set[str]) -> str:
    """``prompt: NAME, `` for the column that looks like the prompt; empty where it has that name."""
    if "prompt" in columns:
        return ""
    names = {column.casefold(): column for column in columns if column not in taken}
    for name in ("prompt", *_PROMPTS):
        if name in names:
            return f"prompt: {quote_key(names[name])}, "
    return ""


def _label(columns: Sequence[str], sample: Sample, taken: set[str]) -> str:
    """Lines for the label of two responses: scores of both, or a column that names the better one."""
    for sides in (("a", "b"), ("0", "1"), ("1", "2")):
        for column in columns:
            twin = None if column in taken else _twin(column, sides, columns)
            if twin is not None and re.search(r"score|rating|reward|vote|grade|points", column, re.IGNORECASE):
                pair = f"{{a: {quote_key(column)}, b: {quote_key(twin)}}}"
                return f"`votes: {{counts: {pair}}}`" if "vote" in column.casefold() else f"`label: {{scores: [{pair}]}}`"
    best = None
    for column in columns:
        values = _given(column, sample)
        if column in taken or "suggestion" in column or not values or any(isinstance(value, list | dict) for value in values):
            continue
        kind = "winner" if re.search(r"prefer|winner|verdict|chosen|safer|slider|likert", column, re.IGNORECASE) else kind_by_name(column)
        if kind == "winner":
            return _named(column, values)
        best = best or (_named(column, values) if kind == "score" else None)
    return best or "`label: {column: …, a: …, b: …}`"


def _named(column: str, values: Sequence[Any]) -> str:
    """Lines for a column that names the better of two responses."""
    path, distinct = quote_key(column), sorted(set(map(str, values)))
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        given = {number for number in numbers if number is not None}
        if min(given) < 0:
            return f"`label: {{column: {path}, positive: …}}` (a or b: the response that a positive number prefers)"
        if given <= {0.0, 1.0} or given <= {1.0, 2.0}:
            return f"`label: {{column: {path}, a: …, b: …}}` (its values: {', '.join(distinct)})"
        return f"`label: {{column: {path}, positive: …, zero: …}}` (zero: the number that prefers neither; its values: {_some(distinct)})"
    fields = {"a": _meant(distinct, "a", "1", "left", "0"), "b": _meant(distinct, "b", "2", "right", "1"), "tie": _meant(distinct, "tie")}
    shown = ", ".join(f"{name}: [{', '.join(_flow(v) for v in found) or '…'}]" for name, found in fields.items() if found or name != "tie")
    return f"`label: {{column: {path}, {shown}}}` (its values: {_some(distinct)})"


def _meant(values: Sequence[str], *sides: str) -> list[str]:
    """Those values that plainly mean a side, as ``model_a``, ``A`` and ``A>B`` the first."""
    for side in sides:
        pattern = re.compile(rf"((model|response|answer|output|completion|option|assistant)[ _-]?)?{side}([ _>(].*)?", re.IGNORECASE)
        found = [value for value in values if pattern.fullmatch(value)]
        if found:
            return found
    return []


# ------------------------------------------------------------------------------------------- several responses, one response


def _several(columns: Sequence[str], sample: Sample) -> str:
    """Lines for a list of responses: structs, a struct of lists, or texts beside a list of numbers."""
    prompt = _prompt_field(columns, sample, set())
    for column in columns:
        values, path = _given(column, sample), quote_key(column)
        if not values:
            continue
        items = [item for value in values if isinstance(value, list) for item in value]
        if items and all(isinstance(value, list) and len(value) > 1 for value in values) and all(isinstance(i, dict) for i in items):
            text = next((key for key in _TEXT_KEYS if all(isinstance(item.get(key), str) for item in items)), None)
            if text is not None and not any("role" in item or "from" in item for item in items):
                return _list_lines(prompt, f"{path}[].{quote_key(text)}", _key_with_numbers(items, f"{path}[]"))
        if all(isinstance(value, dict) and value and all(isinstance(inner, list) for inner in value.values()) for value in values):
            text = next((key for key in _TEXT_KEYS if all(_texts(value.get(key)) for value in values)), None)
            if text is not None:
                number = next((key for key in values[0] if all(_numbers(value.get(key)) for value in values)), None)
                return _list_lines(prompt, f"{path}.{quote_key(text)}", None if number is None else (number, f"{path}.{quote_key(number)}"))
        if all(_texts(value) and len(value) > 1 for value in values):
            number = next((c for c in columns if c != column and (found := _given(c, sample)) and all(map(_numbers, found))), None)
            if number is not None:
                return _list_lines(prompt, path, (number, quote_key(number)))
    return ""


def _list_lines(prompt: str, responses: str, number: tuple[str, str] | None) -> str:
    label = "`label: {scores: […]}`" if number is None else f"`label: {{scores: [{in_flow(number[1])}]}}`"
    if number is not None and kind_by_name(number[0]) == "rank":
        label = f"`label: {{ranks: {in_flow(number[1])}, base: …}}` (base: rank of the best response)"
    return f"`columns: {{{prompt}responses: {in_flow(responses)}}}` and {label}"


def _key_with_numbers(items: Sequence[dict[str, Any]], path: str) -> tuple[str, str] | None:
    keys = [key for key in items[0] if all(_number(item.get(key)) is not None for item in items)]
    key = next(
        (key for key in keys if kind_by_name(key) in ("score", "rank", "winner") or "prefer" in key), keys[0] if len(keys) == 1 else None
    )
    return None if key is None else (key, f"{path}.{quote_key(key)}")


def _one(columns: Sequence[str], sample: Sample) -> str:
    """Lines for rows of one response each: grouped by their prompt where it has a score, else with an approval."""
    response = next((column for column in columns if _RESPONSE.fullmatch(column) and all(map(_is_text, _given(column, sample)))), None)
    if response is None:
        return ""
    fields = _prompt_field(columns, sample, {response}) + ("" if response == "response" else f"response: {quote_key(response)}")
    mapped = f" with `columns: {{{fields.removesuffix(', ')}}}`" if fields else ""
    for column in columns:
        values = _given(column, sample)
        if not values or any(isinstance(value, list | dict) for value in values):
            continue
        kind, path = kind_by_name(column), quote_key(column)
        if kind == "score" and all(_number(value) is not None for value in values):
            return f"`shape: rows`{mapped} and `label: {{scores: [{path}]}}` (rows of one prompt are compared)"
        if (kind == "winner" or re.search("chosen|thumb|feedback|approv", column, re.IGNORECASE)) and len(set(map(str, values))) <= _FEW:
            shown = _some(sorted(set(map(str, values))))
            return f"`shape: unpaired` or `rows`{mapped} and `label: {{column: {path}, true: […], false: […]}}` (its values: {shown})"
    return ""


# -------------------------------------------------------------------------------------------------------------- values


def _given(column: str, sample: Sample) -> list[Any]:
    return [row[column] for row in sample if row.get(column) not in (None, "")]


def _may_be_response(value: Any) -> bool:
    return value is None or isinstance(value, list | dict) or (isinstance(value, str) and " " in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_number(item) is not None for item in value)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"[+-]?\d+(\.\d+)?", value.strip(), re.ASCII) else None
    return float(value) if isinstance(value, int | float) else None


def _some(values: Sequence[str]) -> str:
    shown = ", ".join(_flow(value[:40]) for value in values[:_FEW])
    return f"{shown}, …" if len(values) > _FEW else shown


def _flow(value: str) -> str:
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1000).strip()[1:-1]
