"""From a YAML file and ``--set a.b=v`` to a validated configuration (:mod:`flows.config.models`); every mistake at once, in plain words.

Validation is stricter than pydantic is by default: ``epochs: "3"`` is refused rather than guessed at. Each message names the key
path, the line, what is allowed and what was found; pydantic's vocabulary stays inside this module. ``flows/config/yaml_text.py`` reads the
YAML.

Relative paths (``data.*.path``, globs included, ``data.decontaminate``, ``policy.source``, ``classifier.encoder.source``, a judge's
``model.source``) are relative to the configuration file's folder, also where they come from ``--set``: one rule, and a configuration
folder can be moved as a whole.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dora_core.config.benchmarks import is_file
from dora_core.data.globs import is_glob
from dora_core.errors import ConfigError, did_you_mean
from dora_core.losses import LOSSES, PreferenceLoss
from dora_core.strict_model import NAME_PATTERN, REVISION_PATTERN
from flows.config.models import MethodConfig, RealignConfig
from flows.config.yaml_text import KeyPath, Override, apply_override, dotted, parse_override, read_yaml

Configuration = TypeVar("Configuration", bound=MethodConfig)
Model = TypeVar("Model", bound=BaseModel)
MAX_BYTES = 1_000_000
MOST = 2**53 - 1
"""Largest whole number of a configuration: JSON and the forms of a browser carry no larger one exactly, and any seed up to it works."""


# ---------------------------------------------------------------------------------------------------------- validation


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    model: type[Configuration] = RealignConfig,  # type: ignore[assignment]  # the default decides the type variable
) -> Configuration:
    """Read, override, resolve paths, validate.

    Args:
        model: model of the configuration.

    Raises:
        ConfigError: with *all* mistakes, one per line: ``align.objective.lambda: must be greater than 0 (got -1)``.
    """
    parsed = [parse_override(assignment) for assignment in overrides]
    return parse_config(read_text(path, model), parsed, model, place=path.name, folder=path.resolve().parent)


def read_text(path: Path, model: type[MethodConfig] = RealignConfig) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: it cannot be read, or is too long to be a configuration.
    """
    try:
        size, text = path.stat().st_size, ""
        if size <= MAX_BYTES:
            text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {_reason(error)}", hint=_neighbours(path)) from None
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} of a configuration",
            hint=f"-c names the configuration; data files go into it, under data.train. Start from {model.example}",
        )
    return text


def load_preset(name: str, overrides: Sequence[str], model: type[Configuration]) -> Configuration:
    """Load a configuration that comes with the package; relative paths in ``overrides`` are relative to the working folder.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    return parse_config(packaged(name), [parse_override(assignment) for assignment in overrides], model, place=name, folder=Path.cwd())


def packaged(name: str) -> str:
    """Return the text of ``infra/configs/<name>``."""
    return (importlib.resources.files("infra") / "configs" / name).read_text(encoding="utf-8")


def parse_config(text: str, overrides: Sequence[Override], model: type[Configuration], *, place: str, folder: Path) -> Configuration:
    """Parse the text of a configuration; relative paths in it are relative to ``folder``.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    data, lines = read_yaml(text, place)
    if data is None:
        raise ConfigError(f"{place} is empty", hint=f"start from {model.example}; {_sections(model)}")
    if not isinstance(data, dict):
        raise ConfigError(f"{place} must be a mapping of sections at the top, not a {_kind(data)}", hint=_sections(model))
    for override in overrides:
        apply_override(data, override, model)
    return validate(data, place=place, folder=folder, lines=lines, model=model)


def _sections(model: type[MethodConfig]) -> str:
    return f"sections: {', '.join(model.model_fields)}"


def validate(
    data: dict[str, Any],
    *,
    place: str,
    folder: Path,
    lines: dict[KeyPath, int] | None = None,
    model: type[Model] = RealignConfig,  # type: ignore[assignment]  # the default decides the type variable
) -> Model:
    """Validate raw data; relative paths in it are resolved against ``folder``, in place.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    mistakes = [*_resolve_paths(data, folder), *_beyond(data, ())]
    config = None
    try:
        config = model.model_validate(
            data, strict=True
        )  # fields have types of YAML (no tuples, enums), or strictness would refuse lists, texts
    except ValidationError as error:
        mistakes = [*_explain(error, data, model), *mistakes]
    if config is not None and not mistakes:
        return config
    shown = [f"{dotted(key) or 'configuration'}: {text}{_line(key, lines or {})}" for key, text in mistakes]
    headline = f"{place} has {len(shown)} mistakes:\n  " if len(shown) > 1 else f"{place}: "
    raise ConfigError(
        headline + "\n  ".join(shown), hint=f"correct {'them' if len(shown) > 1 else 'it'} and look at the plan with --dry-run"
    )


def _beyond(data: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield the whole numbers that are too large."""
    if isinstance(data, int) and abs(data) > MOST:
        yield path, f"must be at most {MOST} (got {data if abs(data) < 10**40 else 'a longer one'})"
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _beyond(value, (*path, key))


def _resolve_paths(data: dict[str, Any], folder: Path) -> list[tuple[KeyPath, str]]:
    """Make paths absolute, in place; returns the mistakes: texts that are clearly paths but do not exist."""
    mistakes: list[tuple[KeyPath, str]] = []
    places: list[tuple[Any, Any, KeyPath]] = []
    given = data.get("data")
    section: dict[str, Any] = given if isinstance(given, dict) else {}
    for kind in ("train", "eval", "golden"):
        entries = section.get(kind)
        for i, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict) and isinstance(entry.get("path"), list):
                places += [(entry["path"], j, ("data", kind, i, "path", j)) for j in range(len(entry["path"]))]
            else:
                places.append((entry, "path", ("data", kind, i, "path")))
    files = section.get("decontaminate")
    places += [(files, i, ("data", "decontaminate", i)) for i in range(len(files) if isinstance(files, list) else 0)]
    asked = data.get("benchmarks")
    tasks = asked.get("tasks") if isinstance(asked, dict) else None
    for i, task in enumerate(tasks if isinstance(tasks, list) else []):
        if isinstance(task, str) and is_file(task):
            places.append((tasks, i, ("benchmarks", "tasks", i)))
    for path_of_model in (("policy",), ("classifier", "encoder"), ("judge", "model"), ("compare", "judge", "model")):
        model: Any = data
        for name in path_of_model:
            model = model.get(name) if isinstance(model, dict) else None
        places.append((model, "source", (*path_of_model, "source")))
    for holder, at, key in places:
        value = holder[at] if isinstance(holder, list) and isinstance(at, int) else holder.get(at) if isinstance(holder, dict) else None
        if not isinstance(value, str) or not value or "://" in value:
            continue
        is_model = at == "source"
        try:
            path = folder / Path(value).expanduser()
            there = path.exists()
        except (OSError, RuntimeError) as error:  # a name too long, a folder without access, a home folder of an unknown user
            mistakes.append((key, f"cannot be looked up: {_reason(error)}"))
            continue
        if there:
            holder[at] = str(path.resolve())
        elif not is_model and is_glob(value):
            holder[at] = str(path)
        elif value.startswith(("/", "./", "../", "~")) or (
            not is_model and (Path(value).suffix or (isinstance(holder, dict) and holder.get("format") in ("parquet", "jsonl")))
        ):
            mistakes.append((key, f"no such file or folder: {path}; {_neighbours(path)}"))
    return mistakes


# ------------------------------------------------------------------------------------------------------ plain language

_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a section with keys",
    "model_attributes": "a mapping",  # of a union of sections
}
_PATTERNS = {
    NAME_PATTERN: "must be 1 to 64 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit",
    REVISION_PATTERN: "must be a commit: 40 hex digits",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def _explain(error: ValidationError, data: dict[str, Any], root: type[BaseModel]) -> Iterator[tuple[KeyPath, str]]:
    """Yield (key path, text) per mistake; the alternatives of a union are joined into one sentence."""
    grouped: dict[KeyPath, list[tuple[str, Any]]] = {}
    for details in error.errors(include_url=False):
        fault: dict[str, Any] = {**details}
        path, model = _locate(fault["loc"], root)
        if fault["type"].startswith("union_tag"):
            path = (*path, fault["ctx"]["discriminator"].strip("'"))
            fault["input"] = fault["ctx"].get("tag")
        if model is PreferenceLoss:
            # parse_loss has found the loss, or the mistake is at the loss itself, which is a parameter of another (a part of mpo).
            holder = _at(data, path[:-1])
            model = LOSSES.get(str(holder.get("name")), model) if isinstance(holder, dict) else model
        text = _sentence(fault, model, path)
        if (text, fault["input"]) not in grouped.setdefault(path, []):
            grouped[path].append((text, fault["input"]))
    for path, alternatives in grouped.items():
        if isinstance(alternatives[0][1], dict) and any(other[: len(path)] == path and other != path for other in grouped):
            continue  # a mapping was meant, and the mistake inside it is reported
        text = " or ".join(text for text, _ in alternatives)
        parts = text.split(" or must be ")
        found = alternatives[0][1]
        shown = "" if not text.startswith("must") or isinstance(found, dict) else f" (got {_short(found)})"
        yield path, " or ".join(parts) + shown


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _locate(loc: Iterable[str | int], root: type[BaseModel]) -> tuple[KeyPath, type[BaseModel]]:
    """Split a pydantic location into the user's key path and the model that holds its last key.

    Pydantic adds the member of a union (``float``, ``literal['auto']``, a tag) to the location; these are not keys.
    """
    path: list[str | int] = []
    holder: type[BaseModel] = root
    current: Any = root
    for part in loc:
        if isinstance(part, int):
            path.append(part)
            current = _item_type(current)
        elif isinstance(current, type) and issubclass(current, BaseModel):
            path.append(part)
            holder = current
            field = _keys(current).get(part)
            current = field.annotation if field else None
            models, others = _models(current), [m for m in _members(current) if m is not type(None)]
            current = models[0] if len(models) == len(others) == 1 else current
        elif isinstance(part, str) and (member := next((m for m in _models(current) if part in (m.__name__, _tag(m))), None)):
            current = member
        elif current is None or dict in _origins(current):  # a free mapping such as calibration.shares
            path.append(part)
            current = None
    return tuple(path), holder


def _sentence(fault: dict[str, Any], model: type[BaseModel], path: KeyPath) -> str:
    kind, context, found = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {did_you_mean(str(path[-1]), _keys(model))}"
    if kind == "missing":
        field = _keys(model).get(str(path[-1]))
        return f"is required: {field.description}" if field and field.description else "is required"
    if kind == "union_tag_not_found":
        return "is required: it is the kind of the section"
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", context["expected" if kind == "literal_error" else "expected_tags"])
        if not isinstance(found, str):
            return f"must be one of: {', '.join(allowed)}"
        close = difflib.get_close_matches(found, allowed, n=1, cutoff=0.5)
        return f"must be one of: {', '.join(allowed)}" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]:g}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
    if kind in ("too_short", "string_too_short"):
        return f"must have at least {context.get('min_length', 1)} {'item' if kind == 'too_short' else 'character'}"
    if kind == "value_error":
        text = str(context["error"])
        return text if len(text) <= 1000 else f"{text[:1000]}…"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "int_from_float":
        return "must be a whole number"
    expected = kind.removesuffix("_type").removesuffix("_parsing")
    return f"must be {_TYPES[expected]}" if expected in _TYPES else fault["msg"][:1].lower() + fault["msg"][1:]


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _tag(model: type[BaseModel]) -> Any:
    """Return the ``kind`` that a member of a tagged union must have."""
    field = model.model_fields.get("kind")
    return field.default if field else None


def _members(annotation: Any) -> list[Any]:
    return [annotation] if isinstance(annotation, type) else [m for a in get_args(annotation) for m in _members(a)] or [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]


def _origins(annotation: Any) -> list[Any]:
    return [get_origin(annotation), *(get_origin(a) for a in get_args(annotation))]


def _item_type(annotation: Any) -> Any:
    arguments = get_args(annotation)
    return arguments[0] if arguments else annotation


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "true/false"}.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _line(key: KeyPath, lines: dict[KeyPath, int]) -> str:
    """Return the line of the key, or of the nearest section above it that is in the file."""
    while key and key not in lines:
        key = key[:-1]
    return f" [line {lines[key]}]" if key else ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _neighbours(path: Path) -> str:
    """Return a hint from the folder's content: the nearest name, or the names there."""
    try:
        if not path.parent.is_dir():
            return f"the folder {path.parent} does not exist"
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError as error:
        return f"the folder {path.parent} cannot be read: {_reason(error)}"
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"in that folder: {', '.join(names[:8]) or 'nothing'}{' …' if len(names) > 8 else ''}"
