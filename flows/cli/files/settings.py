"""From the options and ``--set`` of the commands on files to specs and other validated models."""

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
from flows.planning.registered import resolved_model

Model = TypeVar("Model", bound=StrictModel)


def from_options(
    kind: type[Model],
    given: Mapping[str, object],
    overrides: Sequence[str],
    *,
    fixed: Mapping[str, object] | None = None,
    hint: str = "",
) -> Model:
    """Build a model, such as the spec of a stage, from a command line. Sections without options have their defaults.

    Args:
        given: values of dedicated options by key path, e.g. ``{"generate.samples": 4}``; None: not given.
        overrides: of ``--set``, which take precedence.
        fixed: fields that the command sets; ``--set`` does not take them.

    Raises:
        ConfigError: with all mistakes.
    """
    fixed = fixed or {}
    keys = [name for name in kind.model_fields if name not in fixed]
    raw: dict[str, Any] = {name: {} for name in keys if _is_section(kind.model_fields[name].annotation)}
    if "execution" in raw:
        raw["execution"]["workers"] = 0
    values = [(path, value) for path, value in given.items() if value is not None]
    for path, value in [*values, *map(parse_override, overrides)]:
        if (section := path.partition(".")[0]) in fixed:
            raise ConfigError(f"--set {path}: the command itself sets {section}", hint=f"--set takes keys of {', '.join(keys)}")
        apply_override(raw, (path, value), kind)
    try:
        return validate({**raw, **fixed}, place="the options", folder=Path.cwd(), model=kind)
    except ConfigError as error:
        raise ConfigError(error.message, hint="; ".join(filter(None, (hint, f"--set takes keys of {', '.join(keys)}")))) from None


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, StrictModel)


def execution_options(workers: int | None, endpoint: str | None, api_key_env: str | None) -> dict[str, object]:
    """Return the options that ``dora generate`` and ``dora judge`` share, by key path."""
    return {"execution.workers": workers, "execution.endpoint.url": endpoint, "execution.endpoint.api_key_env": api_key_env}


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
    model = resolved_model(model)
    folder = Path(model.source).expanduser()
    return pin(model.evolve(source=str(folder.resolve())) if folder.is_dir() else model)
