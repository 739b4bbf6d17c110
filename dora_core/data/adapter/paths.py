"""Paths into a row, compiled once per input: the value, or the place and the reason why there is none.

A column whose whole name equals the path's text is taken as it is (``info.post`` of a flattened CSV). A list met where a key is expected is
visited element by element, as with ``[]``; a text met there is parsed if it is JSON or Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from dora_core.config.path_syntax import Each, Step, parse_path, quote_key
from dora_core.data.adapter.numbers import describe
from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure


class Missing:
    """A path that leads to nothing: where, and what is there instead. ``absent``: a key is not there; otherwise a value has another
    type."""

    __slots__ = ("absent", "detail", "place")

    def __init__(self, place: str, detail: str, *, absent: bool):
        self.place, self.detail, self.absent = place, detail, absent


Getter = Callable[[Any], Any]
_NO: Final = object()


class CompiledPath:
    """A path for rows of one input. ``get`` returns the value, None for null, or :class:`Missing`."""

    __slots__ = ("_alternatives", "_elements", "get", "is_list", "roots", "text")

    def __init__(self, text: str, columns: Collection[str] = ()):
        self.text = text
        self._alternatives: tuple[tuple[Step, ...], ...] = ((text,),) if text in columns else parse_path(text)
        self.roots: tuple[str, ...] = tuple(str(steps[0]) for steps in self._alternatives)
        self.is_list = any(isinstance(step, Each) for steps in self._alternatives for step in steps)
        self._elements: list[str] = []
        getters = [_getter(steps) for steps in self._alternatives]
        self.get: Getter = getters[0] if len(getters) == 1 else _first_of(getters)

    def element(self, index: int) -> str:
        """Place of one element of the list that this path gives: ``completions[2].text`` or ``responses[2]``."""
        while index >= len(self._elements) and len(self._elements) < 1000:
            self._elements.append(self._element(len(self._elements)))
        return self._elements[index] if index < len(self._elements) else self._element(index)

    def _element(self, index: int) -> str:
        return self.text.replace("[]", f"[{index}]", 1) if "[]" in self.text else f"{self.text}[{index}]"

    def child(self, key: str) -> str:
        """Path of a key of every element of the list that this path gives, or of the value itself."""
        return f"{self.text}.{quote_key(key)}"

    def steps(self) -> Iterator[tuple[Step, ...]]:
        """The alternatives, each a sequence of steps."""
        return iter(self._alternatives)


def _first_of(getters: list[Getter]) -> Getter:
    def get(row: Any) -> Any:
        found: Any = None
        for one in getters:
            value = one(row)
            if value is not None and type(value) is not Missing:
                return value
            found = value if found is None else found
        return found

    return get


def _getter(steps: tuple[Step, ...]) -> Getter:
    """Fast closures for a column, a key of a column, and a key of every element; the general walk for the rest and for every failure."""

    def walk(row: Any) -> Any:
        return _walk(row, steps, 0, "")

    match steps:
        case (str() as column,):

            def of_column(row: dict[str, Any]) -> Any:
                value = row.get(column, _NO)
                return walk(row) if value is _NO else value

            return of_column
        case (str() as column, str() as key):

            def of_key(row: dict[str, Any]) -> Any:
                inner = row.get(column)
                value = inner.get(key, _NO) if type(inner) is dict else _NO
                return walk(row) if value is _NO else value

            return of_key
        case (str() as column, Each(), str() as key):

            def of_each(row: dict[str, Any]) -> Any:
                values = row.get(column)
                if type(values) is list:
                    try:
                        return [value[key] for value in values]
                    except (KeyError, TypeError):
                        pass
                return walk(row)

            return of_each
    return walk


def _walk(value: Any, steps: tuple[Step, ...], at: int, place: str) -> Any:
    while at < len(steps):
        step = steps[at]
        if value is None:
            return None
        if at and isinstance(value, str) and looks_structured(value):
            try:
                value = parse_structure(value)
            except Unparsable as error:
                return Missing(place, f"is text that {error}, expected {_wanted(step)}", absent=False)
        if isinstance(step, Each) or (isinstance(step, str) and isinstance(value, list)):
            if not isinstance(value, list):
                return Missing(place, f"is {describe(value)}, expected a list", absent=False)
            at_next = at + 1 if isinstance(step, Each) else at
            return _each(value, steps, at_next, place)
        if isinstance(step, str):
            if not isinstance(value, dict):
                return Missing(place, f"is {describe(value)}, expected a struct with the key {quote_key(step)}", absent=False)
            if step not in value:
                there = ", ".join(quote_key(str(key)) for key in list(value)[:20])
                where = f"{place} has" if place else "the row has"
                return Missing(
                    f"{place}.{quote_key(step)}" if place else quote_key(step),
                    f"{where} no key {quote_key(step)}; keys there: {there}",
                    absent=True,
                )
            value = value[step]
            place = f"{place}.{quote_key(step)}" if place else quote_key(step)
        else:
            if not isinstance(value, list):
                return Missing(place, f"is {describe(value)}, expected a list", absent=False)
            if not -len(value) <= step < len(value):
                return Missing(f"{place}[{step}]", f"{place} has {len(value)} elements", absent=True)
            value = value[step]
            place = f"{place}[{step}]"
        at += 1
    return value


def _each(values: list[Any], steps: tuple[Step, ...], at: int, place: str) -> Any:
    nested = any(isinstance(step, Each) for step in steps[at:])
    found: list[Any] = []
    absent: Missing | None = None
    for i, value in enumerate(values):
        result = _walk(value, steps, at, f"{place}[{i}]")
        if type(result) is Missing:
            if not result.absent:
                return result
            absent, result = absent or result, None  # a key that only some elements lack is null there
        if nested and isinstance(result, list):
            found.extend(result)
        elif not (nested and result is None):
            found.append(result)
    if absent is not None and not any(value is not None for value in found):
        return absent
    return found


def _wanted(step: Step) -> str:
    return f"a struct with the key {quote_key(step)}" if isinstance(step, str) else "a list"
