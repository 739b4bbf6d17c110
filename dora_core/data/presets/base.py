"""What a preset is, the registry that names it, and how a schema is recognised.

A preset is a prepared :class:`~dora_core.config.adapter.Adapter` for a published schema. It expands to plain keys, which are printed; keys
that a user writes beside it override its keys. Recognition never guesses: exactly one preset fits, or the input is refused with the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import yaml

from dora_core.config.adapter import Adapter, UnpairedLabel, roots_of
from dora_core.config.path_syntax import Each, parse_path, quote_key
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure
from dora_core.data.adapter.transcripts import hh_transcript
from dora_core.errors import ConfigError, DataError, did_you_mean
from dora_core.plugins import load_plugins

SAMPLE_ROWS = 64


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(role in value and text in value for role, text in (("role", "content"), ("from", "value")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is not None)


def _is_approval(value: Any) -> bool:
    """Whether a value may approve or disapprove: a word, a boolean, 1 or 0, and no grade."""
    return (
        value in (0, 1) if isinstance(value, int | float) else isinstance(value, str) and (not _is_number(value) or float(value) in (0, 1))
    )


@lru_cache(maxsize=8192)
def _structure_in(text: str) -> Any:
    """The list or object that a CSV or SQL export wrote as text; None for any other text."""
    if not looks_structured(text):
        return None
    try:
        return parse_structure(text)
    except Unparsable:
        return None


KINDS: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "text": lambda value: isinstance(value, str),
    "transcript": lambda value: isinstance(value, str) and hh_transcript(value) is not None,
    "message": _is_message,
    "messages": lambda value: isinstance(value, list) and bool(value) and all(map(_is_message, value)),
    "response": lambda value: isinstance(value, str) or _is_message(value) or (isinstance(value, list) and all(map(_is_message, value))),
    "struct": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "structs": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    "texts": lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value),
    "responses": lambda value: isinstance(value, list) and all(isinstance(item, str) or _is_message(item) for item in value),
    "number": _is_number,
    "scalar": lambda value: isinstance(value, str | int | float | bool),
    "approval": _is_approval,
}
"""Kinds of values that a preset can ask of a column: all values of the sample that are not null must be of it."""
_WRITTEN = frozenset({"message", "messages", "struct", "structs"})
"""Kinds that may also be written as text, which the adapter parses."""
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Variant:
    """One form of a schema.

    Attributes:
        needs: columns that must be there → kind of their values (:data:`KINDS`); ``info.post`` looks into a struct, ``answers[].rank`` into
            a list of them.
        adapter: keys of the :class:`Adapter`. Of a path with alternatives only columns that are there stay; ``carry``, ``ignore`` and
            ``optional`` (paths of ``columns`` and ``context``) count only where their column is there.
        without: columns that must not be there.
        optional: places such as ``context.input`` that are left out where their column is not there.
    """

    needs: Mapping[str, str]
    adapter: Mapping[str, Any]
    without: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    def fits(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> bool:
        """Whether rows with these columns are of this form."""
        there = set(columns)
        if self.without & there:
            return False
        return all(self._has(path, kind, there, sample) for path, kind in self.needs.items())

    def _has(self, text: str, kind: str, there: set[str], sample: Sequence[Mapping[str, Any]]) -> bool:
        steps = (text,) if text in there else parse_path(text)[0]
        if str(steps[0]) not in there:
            return False
        values = [value for row in sample[:SAMPLE_ROWS] for value in _at(row, steps) if value is not None]
        is_kind = KINDS[kind]
        return (bool(values) or (kind == "any" and len(steps) == 1)) and all(
            is_kind(value) or (kind in _WRITTEN and isinstance(value, str) and is_kind(_structure_in(value))) for value in values
        )


def _at(value: Any, steps: Sequence[Any]) -> Iterator[Any]:
    """The values at a path: one, or that of every element of a list on the way."""
    if not steps:
        yield value
        return
    step, *rest = steps
    if isinstance(step, Each):
        found = value if isinstance(value, list) else []
    else:
        found = [value.get(step) if isinstance(value, Mapping) else None]
    for item in found:
        yield from _at(_structure_in(item) if rest and isinstance(item, str) else item, rest)


class Preset:
    """Base of all presets; the class's docstring names the data sets. Register with :func:`register_preset`."""

    name: ClassVar[str]
    golden: ClassVar[bool] = False
    """Whether it reads trusted single responses (``data.golden``)."""
    refines: ClassVar[tuple[str, ...]] = ()
    """More general presets that also fit its files, and give way to it."""
    variants: ClassVar[tuple[Variant, ...]]


PRESETS: dict[str, type[Preset]] = {}
"""What is registered in this process so far; :func:`registered_presets` is the list for a reader."""

P = TypeVar("P", bound=type[Preset])


def register_preset(preset: P) -> P:
    """Class decorator: make a preset available under its ``name``.

    Raises:
        TypeError: no ``name``, no ``variants``, or keys that are no adapter.
        ValueError: another class has the name, or the name is reserved.
    """
    if not isinstance(getattr(preset, "name", None), str) or not getattr(preset, "variants", ()):
        raise TypeError(f"{preset.__name__} needs `name = '…'` and `variants = (Variant(needs=…, adapter=…),)`")
    if preset.name in ("auto", "none"):
        raise ValueError(f"a preset cannot be named {preset.name!r}")
    for variant in preset.variants:
        unknown = sorted(set(variant.needs.values()) - KINDS.keys())
        if unknown:
            raise TypeError(f"{preset.__name__}: unknown kind {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
        Adapter.model_validate(dict(variant.adapter))
    known = PRESETS.get(preset.name, preset)
    if (known.__module__, known.__qualname__) != (preset.__module__, preset.__qualname__):
        raise ValueError(f"preset {preset.name!r} is already registered by {known.__module__}.{known.__qualname__}; choose another name")
    PRESETS[preset.name] = preset
    return preset


def registered_presets() -> dict[str, type[Preset]]:
    """All presets by name, the user's plug-ins included.

    Raises:
        ConfigError: a plug-in cannot be loaded.
    """
    load_plugins()
    return dict(sorted(PRESETS.items()))


def find_preset(name: str) -> type[Preset]:
    """The preset of this name.

    Raises:
        ConfigError: there is none; names the nearest one.
    """
    presets = registered_presets()
    if name not in presets:
        raise ConfigError(f"unknown preset {name!r}", hint=did_you_mean(name, [*presets, "auto", "none"]))
    return presets[name]


def recognise(columns: Sequence[str], sample: Sequence[Mapping[str, Any]], *, golden: bool = False) -> list[str]:
    """Names of the presets that fit, the most special ones only: a preset gives way to another that asks for its columns and more."""
    fitting: dict[str, set[str]] = {}
    for name, preset in registered_presets().items():
        if preset.golden == golden:
            needs = [set(variant.needs) for variant in preset.variants if variant.fits(columns, sample)]
            if needs:
                fitting[name] = max(needs, key=len)
    general = {refined for name in fitting for refined in PRESETS[name].refines}
    return [
        name
        for name, needs in fitting.items()
        if name not in general
        and not any(needs < other for key, other in fitting.items() if key != name and name not in PRESETS[key].refines)
    ]


@dataclass(frozen=True)
class Expanded:
    """A preset with the user's keys over it."""

    adapter: Adapter
    preset: str
    text: str = field(repr=False)
    """The expansion as YAML."""


def expand(name: str, overrides: Adapter | None = None, columns: Sequence[str] = (), sample: Sequence[Mapping[str, Any]] = ()) -> Expanded:
    """The adapter that a preset stands for, with ``overrides`` over it; ``carry`` and ``ignore`` are joined.

    Args:
        overrides: only keys that were written count.
        columns: of the file; without them the first variant is taken, whole.

    Raises:
        ConfigError: unknown preset, or the keys together are not an adapter.
        DataError: the columns that the preset reads are not there; names them.
    """
    preset = find_preset(name)
    variant = preset.variants[0]
    if columns:
        fitting = [v for v in preset.variants if v.fits(columns, sample)]
        if not fitting:
            lines = "; ".join(_unfit(v, columns, sample) for v in preset.variants)
            raise DataError(
                f"preset {name!r} does not fit: {lines}",
                hint=f"columns there: {', '.join(columns)}; set another preset, or `preset: none` and map the columns",
            )
        variant = max(fitting, key=lambda v: len(v.needs))
    keys = _present(variant, columns, sample)
    own = {} if overrides is None else overrides.model_dump(mode="json", exclude_unset=True)
    own.pop("preset", None)
    merged = _merged(keys, own)
    try:
        adapter = Adapter.model_validate({**merged, "preset": "none"})
    except ValueError as error:
        raise ConfigError(f"preset {name!r} and the keys written beside it do not fit together: {error}", hint=as_text(merged)) from error
    return Expanded(adapter, name, as_text(merged))


def is_unpaired(adapter: Adapter) -> bool:
    """Whether rows are known to be unpaired before any is read: by shape, by the kind of label, or by a preset of that shape alone."""
    if adapter.shape is not None or adapter.label is not None:
        return adapter.shape == "unpaired" or isinstance(adapter.label, UnpairedLabel)
    preset = None if adapter.preset in ("auto", "none") else registered_presets().get(adapter.preset)
    return preset is not None and all(variant.adapter.get("shape") == "unpaired" for variant in preset.variants)


def as_text(keys: Mapping[str, Any] | Adapter) -> str:
    """An adapter's keys as YAML."""
    if isinstance(keys, Adapter):
        keys = {name: value for name, value in keys.model_dump(mode="json", exclude_defaults=True).items() if name != "preset"}
    return yaml.safe_dump(dict(keys), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _unfit(variant: Variant, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str:
    there = set(columns)
    missing = [path for path in variant.needs if path not in there and roots_of(path)[0] not in there]
    if missing:
        return f"no column {', '.join(missing)}"
    if variant.without & there:
        return f"column {', '.join(sorted(variant.without & there))} is there"
    wrong = [f"{path} is not {kind}" for path, kind in variant.needs.items() if not Variant({path: kind}, {}).fits(columns, sample)]
    return ", ".join(wrong) or "it does not fit"


def _present(variant: Variant, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The variant's keys without what its file does not have."""
    if not columns:
        return dict(_copy(variant.adapter))
    there = set(columns)

    def kept(path: Any) -> Any:
        if not isinstance(path, str) or path in there:
            return path
        parts = [part for part in path.split("|") if roots_of(part)[0] in there]
        return "|".join(parts) if parts else None

    keys: dict[str, Any] = _copy(variant.adapter)
    for section in ("columns", "context"):
        if section in keys:
            for name, path in list(keys[section].items()):
                found = kept(path)
                if found is not None:
                    keys[section][name] = found
                elif f"{section}.{name}" in variant.optional:
                    del keys[section][name]
            if not keys[section]:
                del keys[section]
    if isinstance(keys.get("label"), dict) and isinstance(keys["label"].get("check"), list):
        keys["label"]["check"] = [c for c in keys["label"]["check"] if all(roots_of(p)[0] in there for p in c.values())]
        if not keys["label"]["check"]:
            del keys["label"]["check"]
    for name in ("carry", "ignore"):
        if name in keys:
            keys[name] = [path for path in keys[name] if path in there or (roots_of(path)[0] in there and _leads_somewhere(path, sample))]
            if not keys[name]:
                del keys[name]
    return keys


def _leads_somewhere(text: str, sample: Sequence[Mapping[str, Any]]) -> bool:
    path = CompiledPath(text)
    return not sample or any(type(path.get(dict(row))) is not Missing for row in sample)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value


_JOINED = ("carry", "ignore")
_DEEP = ("columns", "messages", "context", "group", "splits")


def _merged(keys: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(keys)
    for name, value in own.items():
        if name in _DEEP and isinstance(value, dict):
            merged[name] = {**merged.get(name, {}), **value}
        elif name in _JOINED:
            merged[name] = [*merged.get(name, []), *(path for path in value if path not in merged.get(name, []))]
        else:
            merged[name] = value
    if own.get("label") is not None and "columns" in merged:
        merged["columns"] = {
            name: path for name, path in merged["columns"].items() if name not in ("rewards", "ranks") or name in own.get("columns", {})
        }
    if own.get("columns", {}).keys() & {"rewards", "ranks"} and "label" not in own:
        merged.pop("label", None)
    written = {path for section in ("columns", "context") for path in own.get(section, {}).values() if isinstance(path, str)}
    written |= own.get("leave_out", {}).keys()
    for name, other in (("carry", "ignore"), ("ignore", "carry")):
        if name in merged:
            taken = written | set(own.get(other, []))
            merged[name] = [path for path in merged[name] if path in own.get(name, []) or path not in taken]
            if not merged[name]:
                del merged[name]
    for section in ("columns", "context"):
        if section in merged and not merged[section]:
            del merged[section]
    return merged


def quoted(names: Iterable[str]) -> list[str]:
    """Column names as paths."""
    return [quote_key(name) for name in names]
