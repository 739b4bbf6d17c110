"""Settings of the commands on files: from their options and ``--set`` to validated models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dora_core.config.adapter import AdapterColumns
from dora_core.config.data import Columns, DataSource
from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError, did_you_mean
from dora_core.models.pinning import pin
from dora_core.strict_model import StrictModel
from flows.config.loading import validate
from flows.config.yaml_text import apply_override, parse_override

OptionsT = TypeVar("OptionsT", bound=StrictModel)


def options(kind: type[OptionsT], given: Mapping[str, Any], overrides: Sequence[str]) -> OptionsT:
    """Return validated settings: ``given`` by dedicated options (None: not given), then ``--set``.

    Args:
        given: by key path, e.g. ``{"generate.samples": 4}``.

    Raises:
        ConfigError: with all mistakes.
    """
    raw: dict[str, Any] = {"execution": {"workers": 0}} if "execution" in kind.model_fields else {}
    for path, value in given.items():
        if value is not None:
            *parents, last = path.split(".")
            section = raw
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
    for assignment in overrides:
        apply_override(raw, parse_override(assignment))
    try:
        return validate(raw, place="the options", folder=Path.cwd(), model=kind)
    except ConfigError as error:
        raise ConfigError(error.message, hint=f"--set takes keys of {', '.join(kind.model_fields)}") from None


def data_source(path: Path | str, columns: Sequence[str] = ()) -> DataSource:
    """Return a file with its ``FIELD=COLUMN`` mappings.

    Raises:
        ConfigError: a mapping of another form, or of an unknown field.
    """
    mapping = dict(item.partition("=")[::2] for item in columns)
    for field, column in mapping.items():
        if field not in Columns.model_fields or not column:
            raise ConfigError(
                f"--column {field}={column}: expected FIELD=COLUMN", hint=f"fields: {did_you_mean(field, Columns.model_fields)}"
            )
    return DataSource(path=str(path), columns=AdapterColumns(**mapping))


def trained(model: ModelConfig, option: str) -> ModelConfig:
    """Return a pinned model, so that the result belongs to these weights; ``tiny`` has none."""
    if model.is_tiny:
        raise ConfigError(f"{option}: no trained model is named", hint="give a folder with config.json and *.safetensors, or an id")
    folder = Path(model.source).expanduser()
    return pin(model.evolve(source=str(folder.resolve())) if folder.is_dir() else model)
