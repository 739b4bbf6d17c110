"""Columns such as ``chosen`` and ``rejected`` that name a response instead of holding it: by its index, its column, or its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.config.path_syntax import quote_key
from dora_core.data.adapter.fields import Fields
from dora_core.data.column_looks import kind_by_name


def names_for_responses(adapter: Adapter, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Errors of pairs whose two fields name responses that are in other columns, with the line that reads these.

    Columns under ``ignore`` are decided, so that a pair of such short responses can be read.
    """
    fields = Fields(adapter, columns)
    chosen, rejected = fields.path("chosen"), fields.path("rejected")
    if chosen is None or rejected is None or len(chosen.roots) > 1 or len(rejected.roots) > 1:
        return
    pairs = [(row, chosen.get(dict(row)), rejected.get(dict(row))) for row in sample]
    pairs = [(row, one, other) for row, one, other in pairs if one is not None and other is not None]
    decided = {*adapter.ignore, chosen.roots[0], rejected.roots[0], "prompt", "id"}
    open_columns = [column for column in columns if column not in decided and quote_key(column) not in decided]
    first = quote_key(chosen.roots[0])
    if not pairs:
        return
    if all(type(one) is int and type(other) is int for _, one, other in pairs):
        lists = [column for column in columns if all(isinstance(row.get(column), list) for row, _, _ in pairs)]
        base = 0 if any(0 in (one, other) for _, one, other in pairs) else 1
        if lists:
            lines = f"`shape: list` with `columns: {{responses: {quote_key(lists[0])}}}`, `label: {{column: {first}, index_base: {base}}}`"
            yield f"`{chosen.text}` and `{rejected.text}` are indices, not responses: write {lines} and `ignore: [{rejected.text}]`"
        return
    if not all(isinstance(one, str) and isinstance(other, str) for _, one, other in pairs):
        return
    names = {text.strip().casefold() for _, one, other in pairs for text in (one, other)}
    by_name = {column.casefold(): column for column in open_columns}
    if names <= by_name.keys():
        two = [by_name[name] for name in sorted(names)]
        yield _ab(chosen.text, rejected.text, "columns", two, [quote_key(name) for name in two])
        return
    sources = [column for column in open_columns if kind_by_name(column) == "source"]
    for one_column in sources:
        for other_column in sources:
            if one_column < other_column and all({one, other} == {row.get(one_column), row.get(other_column)} for row, one, other in pairs):
                yield _ab(chosen.text, rejected.text, f"values of {one_column!r} and {other_column!r}", ["…", "…"], ["…", "…"])
                return


def _ab(chosen: str, rejected: str, what: str, texts: Sequence[str], values: Sequence[str]) -> str:
    paths = [quote_key(text) if text != "…" else text for text in [*texts, "…"][:2]]
    meant = [*values, "…"][:2]
    line = f"`shape: ab` with `columns: {{a: {paths[0]}, b: {paths[1]}}}`, `label: {{column: {chosen}, a: [{meant[0]}], b: [{meant[1]}]}}`"
    return (
        f"`{chosen}` and `{rejected}` are {what}, not responses: write {line} and `ignore: [{rejected}]`; "
        f"or `ignore` the other columns if they are responses all the same"
    )
