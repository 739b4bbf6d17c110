"""Resolution: from what a user wrote, the columns and some rows, to an adapter that says everything; or one error with all that is missing.

The result is part of the digest, so that a preset that changes is another run. Order: preset → shape → paths → columns left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dora_core.config.adapter import Adapter, AdapterColumns, ScoresLabel, paths_of
from dora_core.config.path_syntax import in_flow, parse_path, quote_key
from dora_core.data.adapter.driver import RowAdapter, shape_by_columns
from dora_core.data.adapter.fields import Fields
from dora_core.data.adapter.numbers import describe
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.shapes.base import shapes
from dora_core.data.column_looks import role_and_text
from dora_core.data.columns_left import ColumnsLeft, columns_left
from dora_core.data.mapping_hints import mapping_hint
from dora_core.data.named_responses import names_for_responses
from dora_core.data.presets.base import as_text, expand, find_preset, recognise
from dora_core.errors import ConfigError, DataError, did_you_mean

_RANK = re.compile(r"(.*[_-])?rank(s|ing|ings)?", re.IGNORECASE)
_EVERYWHERE = frozenset({"id", "prompt", "source", "task", "split", "weight", "label_probability"})
"""Fields of every shape."""


@dataclass(frozen=True)
class Resolved:
    """An adapter in which nothing is left to presets; what it was made of, for previews and facts."""

    adapter: Adapter
    shape: str
    """The adapter's shape, or ``mixed`` where it is decided row by row between pair and list."""
    preset: str | None
    recognised: bool
    """Whether the preset was found by the schema (``preset: auto``)."""
    text: str
    """The adapter as YAML."""
    left: ColumnsLeft

    @property
    def names_sources(self) -> bool:
        """Whether rows say who wrote their responses."""
        columns = self.adapter.columns
        mapped = any(
            isinstance(getattr(columns, name), str)
            for name in ("source", "sources", "chosen_source", "rejected_source", "a_source", "b_source")
        )
        return mapped or bool({"sources", "chosen_source", "rejected_source", "a_source", "b_source"} & set(self.left.used))

    def in_words(self) -> str:
        """One line: preset and shape, and what is carried, for notes."""
        found = f"schema recognised as preset {self.preset}" if self.recognised else f"preset {self.preset}" if self.preset else "no preset"
        extra = [*self.left.carried, *self.left.unnamed]
        return f"{found}, shape {self.shape}" + (f"; carried: {', '.join(dict.fromkeys(extra))}" if extra else "")


def resolve(
    adapter: Adapter,
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    *,
    place: str = "data.train[0]",
    name: str = "the input",
    golden: bool = False,
    ragged: bool = False,
) -> Resolved:
    """The adapter of one input, complete.

    Args:
        adapter: as the user wrote it.
        columns: all columns of the input, hive partitions included.
        sample: some of its rows (64 are plenty), raw.
        place: of the input in the configuration, for messages.
        name: of the input, for messages.
        golden: whether it is trusted data, one response per row.
        ragged: whether later rows may have columns that the sample lacks (JSON lines); then a mapped column that is absent is no error.

    Raises:
        ConfigError, DataError: preset, paths or columns do not fit; every line that is needed is in the hint.
    """
    preset, recognised = None, False
    if adapter.preset == "auto":
        found = _recognised(adapter, columns, sample, place, name, golden)
        if found is not None:
            preset, recognised = found, True
            adapter = expand(found, adapter, columns, sample).adapter
    elif adapter.preset != "none":
        preset = adapter.preset
        if find_preset(preset).golden != golden:
            kind = "trusted data (`data.golden`)" if find_preset(preset).golden else "preference data (`data.train`)"
            raise ConfigError(f"{place}.preset: {preset!r} reads {kind}", hint="presets of this place: " + ", ".join(_presets_of(golden)))
        adapter = expand(preset, adapter, columns, sample).adapter
    if golden and adapter.shape is None:
        adapter = _with(adapter, place, shape="single")
    if golden and adapter.shape != "single":
        raise ConfigError(
            f"{place}.shape: {adapter.shape} is not possible, trusted data has one response per row", hint="write `shape: single`"
        )
    if not golden and adapter.shape == "single":
        raise ConfigError(f"{place}.shape: single is for trusted data", hint="move the input to `data.golden`, or set another shape")
    shape = adapter.shape or shape_by_columns(adapter, columns)
    if shape is None:
        raise DataError(
            f"{place}: {name} fits no preset, and its columns show no shape",
            hint=f"set `shape`, and map the responses, e.g. {mapping_hint(columns, sample)}or a preset "
            f"({', '.join(_presets_of(golden))}); columns there: {', '.join(columns)}",
        )
    if adapter.shape is None and shape != "mixed":
        adapter = _with(adapter, place, shape=shape)
    errors = [*_unused(adapter, shape), *_wrong_paths(adapter, columns, sample, ragged), *_ranks_as_rewards(adapter)]
    errors += [] if errors or shape not in ("pair", "mixed") else names_for_responses(adapter, columns, sample)
    if not errors:
        errors = list(_missing_fields(adapter, shape, columns))
    if errors:
        raise DataError(f"{place}: {name}: {'; '.join(errors)}", hint=f"columns there: {', '.join(columns)}")
    RowAdapter(adapter, columns)  # a missing label is an error here, not at the first row
    left = columns_left(adapter, columns, sample)
    if left.decisions:
        lines = "; ".join(decision.text() for decision in left.decisions)
        raise DataError(f"{place}: {name} has columns that nothing reads and that need a decision", hint=f"{lines} (under {place})")
    if left.unnamed:
        adapter = _with(adapter, place, carry=[*adapter.carry, *(quote_key(column) for column in left.unnamed)])
    adapter = _with(adapter, place, preset="none")
    return Resolved(adapter, shape, preset, recognised, as_text(adapter), left)


def _recognised(
    adapter: Adapter, columns: Sequence[str], sample: Sequence[Mapping[str, Any]], place: str, name: str, golden: bool
) -> str | None:
    """The one preset whose schema this is; None if there is none, or if the user wrote the shape and thereby everything."""
    if adapter.shape is not None or adapter.tree is not None:
        return None
    found = recognise(columns, sample, golden=golden)
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{place}: {name} fits several presets: {', '.join(found)}",
            hint=f"write `preset: {found[0]}` (or another of them), or `preset: none` and map the columns",
        )
    offered = expand(found[0], None, columns, sample).adapter
    conflicts = list(_conflicts(adapter, offered))
    if conflicts:
        raise DataError(
            f"{place}: {name} has the schema of the preset {found[0]!r}, and {'; '.join(conflicts)}",
            hint=f"take the mapping away and write `preset: {found[0]}`, which stands for\n{as_text(offered)}"
            "or write `preset: none` to read only what is mapped",
        )
    return found[0]


def _conflicts(adapter: Adapter, offered: Adapter) -> Iterator[str]:
    possible = _EVERYWHERE | set(shapes()[offered.shape or "pair"].fields)
    for field in AdapterColumns.model_fields:
        own, other = getattr(adapter.columns, field), getattr(offered.columns, field)
        if not isinstance(own, str):
            continue
        if field not in possible:
            yield f"`columns.{field}: {own}` is not read by its shape {offered.shape}"
        elif isinstance(other, str) and own != other and field not in ("id", "task", "split", "weight", "label_probability", "source"):
            yield f"`columns.{field}: {own}` differs from its `{field}: {other}`"


def _with(adapter: Adapter, place: str, **changes: Any) -> Adapter:
    try:
        return Adapter.model_validate({**adapter.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        reasons = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        found = ", ".join(f"{name} {value}" for name, value in changes.items() if name == "shape")
        raise ConfigError(
            f"{place}: the keys do not fit {found or 'together'}: {reasons}", hint="set `shape`, or take the other key away"
        ) from None


def _presets_of(golden: bool) -> list[str]:
    from dora_core.data.presets import registered_presets

    return [name for name, preset in registered_presets().items() if preset.golden == golden]


def _unused(adapter: Adapter, shape: str) -> Iterator[str]:
    own = shapes()[shape].fields
    possible = _EVERYWHERE | set(own)
    for field in AdapterColumns.model_fields:
        if isinstance(getattr(adapter.columns, field), str) and field not in possible:
            yield f"`columns.{field}` would be ignored: shape {shape} has {', '.join(own) or 'no responses of its own'}"


def _wrong_paths(adapter: Adapter, columns: Sequence[str], sample: Sequence[Mapping[str, Any]], ragged: bool) -> Iterator[str]:
    """Paths whose column is not there, or that lead nowhere in any row of the sample."""
    there = frozenset(columns)
    listed = [*paths_of(adapter), *(("carry", path) for path in adapter.carry)]
    for place, text in listed:
        path = CompiledPath(text, there)
        if place.startswith("tree.") and adapter.tree is not None and adapter.tree.replies is not None and place != "tree.root":
            continue
        absent = [root for root in path.roots if root not in there]
        if len(absent) == len(path.roots):
            if not (ragged and place == "carry"):
                yield f"`{place}`: no column {absent[0]!r}; {did_you_mean(absent[0], columns)}"
            continue
        found = [path.get(dict(row)) for row in sample]
        nowhere = [value for value in found if type(value) is Missing]
        if nowhere and not any(value is not None and type(value) is not Missing for value in found):
            yield f"`{place}: {text}` leads nowhere: {nowhere[0].detail}"
            continue
        if place in (
            "columns.responses",
            "columns.response",
            "columns.chosen",
            "columns.rejected",
            "columns.a",
            "columns.b",
            "columns.prompt",
        ):
            yield from _wrong_type(adapter, place, path, [value for value in found if value is not None and type(value) is not Missing])


def _ranks_as_rewards(adapter: Adapter) -> Iterator[str]:
    """Paths of rewards, of which the largest is the best, that end in the name of a rank, of which the smallest is."""
    label = adapter.label
    named = [("columns.rewards", adapter.columns.rewards)]
    if isinstance(label, ScoresLabel) and label.weights is None:
        named += [("label.scores", path) for score in label.scores for path in ((score,) if isinstance(score, str) else score.paths)]
    for place, path in named:
        if isinstance(path, str) and _RANK.fullmatch(str(next((s for s in parse_path(path)[0][::-1] if isinstance(s, str)), ""))):
            yield (
                f"`{place}: {path}` is a rank by its name, the smallest of which is the best, and of rewards the largest is: write "
                f"`label: {{ranks: {in_flow(path)}, base: 1}}` (base 0 if ranks begin with 0); if the largest number is the best, "
                f"`label: {{scores: [{in_flow(path)}], weights: [1]}}`"
            )


def _wrong_type(adapter: Adapter, place: str, path: CompiledPath, values: Sequence[Any]) -> Iterator[str]:
    """A text field that holds structs in every row of the sample."""
    items: list[tuple[str, Any]] = []
    for value in values:
        if place == "columns.responses" and isinstance(value, list):
            items += [(path.element(i), item) for i, item in enumerate(value[:1])]
        else:
            items.append((path.text, value))
    own = {adapter.messages.role or "role", adapter.messages.content or "content"}
    structs = [
        (at, item)
        for at, item in items
        if isinstance(item, dict)
        and not own <= item.keys()
        and not {"role", "content"} <= item.keys()
        and not {"from", "value"} <= item.keys()
    ]
    if not structs or len(structs) < len(items):
        return
    at, struct = structs[0]
    dialect = role_and_text(struct)
    if dialect is not None:
        keys_of_it = ", ".join(f"{name}: {quote_key(key)}" for name, key in zip(("role", "content"), dialect, strict=True))
        yield f"{at} is {describe(struct)}, expected text or a message: write `messages: {{{keys_of_it}}}`"
        return
    texts = [key for key, inner in struct.items() if isinstance(inner, str)]
    field = place.removeprefix("columns.")
    base = f"{path.text}[]" if at != path.text and "[]" not in path.text else path.text
    keys = [f"{field}: {base}.{quote_key(str(key))}" for key in (texts if texts else list(struct))]
    if len(texts) == 1 or len(keys) == 1:
        yield f"{at} is a struct, expected text: map `{keys[0]}`"
    else:
        yield f"{at} is {describe(struct)}, expected text: map one of its keys, e.g. {' or '.join(f'`{key}`' for key in keys[:4])}"


def _missing_fields(adapter: Adapter, shape: str, columns: Sequence[str]) -> Iterator[str]:
    fields = Fields(adapter, columns)
    for field in shapes()[shape].needed:
        if fields.path(field) is None:
            yield f"shape {shape} needs `columns.{field}`, and no column has that name; {did_you_mean(field, columns)}"
    if adapter.tree is None and shape == "tree":
        for name in ("message_id", "parent_id", "role", "text", "rank"):
            if name not in columns:
                yield f"shape tree needs `tree: {{…}}`: no column {name!r}"


__all__ = ["Resolved", "resolve"]
