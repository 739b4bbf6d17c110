"""The form that Prefect's UI shows for a deployment: two levels at most, each field one key of the configuration.

A user names a configuration file and changes a few values; blank fields keep the file's value. Bounds and description of a
field are those of the key it sets, so the Prefect API refuses values in the form that the configuration would refuse in the run. Checks
that need another value or the machine (a loss's bounds, a missing file) fail in the run's first second, with the
messages of the command line: :func:`configure` overrides and validates through ``flows/config/loading.py``.

Prefect's UI draws an input per plain type, a list of choices per enum, a card per section, and tabs per union. Hence no null in the
schema: a blank is a field that is left out.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from dora_core.config.rounds import Strategy
from dora_core.errors import ConfigError, did_you_mean
from dora_core.evaluation.study_statistics import TableName
from flows.config.loading import packaged, parse_config, read_text
from flows.config.models import MethodConfig, RealignConfig, SelfTrainConfig, StudyConfig
from flows.config.yaml_text import Override, apply_override, parse_override, read_yaml
from infra.settings import Settings

Configuration = TypeVar("Configuration", bound=MethodConfig)

DEMO = "demo"
"""Example whose data is generated."""
DEMO_ROUNDS = 2


# ------------------------------------------------------------------------------------------------------ from form to run


def configure(
    model: type[Configuration], config_file: str, sections: Iterable[Section] = (), overrides: Sequence[str] = ()
) -> Configuration:
    """Return the configuration of a run: a file, then the values of the form's sections, then ``overrides`` (``a.b=v``).

    Args:
        config_file: an example of ``infra/configs`` by name, else a path; relative ones are relative to ``<home>/configs``, and so are
            relative paths of data and models set in the form over an example.

    Raises:
        ConfigError: as :func:`flows.config.loading.load_config`.
    """
    changes = [*(override for section in sections for override in section.overrides()), *map(parse_override, overrides)]
    if config_file == DEMO and issubclass(model, RealignConfig):
        from flows.config.demo import demo_config

        demo = demo_config(Settings().root / "demo", DEMO_ROUNDS if issubclass(model, SelfTrainConfig) else 0, changes, _folder())
        assert isinstance(demo, model), "rounds make it the model of self-training"
        return demo
    if config_file in examples():
        return parse_config(packaged(f"{config_file}.yaml"), changes, model, place=config_file, folder=_folder())
    path = _path(config_file, model)
    return parse_config(read_text(path, model), changes, model, place=path.name, folder=path.resolve().parent)


def project_of(model: type[MethodConfig], config_file: str, overrides: Sequence[str] = ()) -> str:
    """Return the project of the configuration that :func:`configure` would make; data and models need not exist.

    Raises:
        ConfigError: the file is not there or cannot be read.
    """
    text = packaged(f"{config_file}.yaml") if config_file in examples() else read_text(_path(config_file, model), model)
    raw, _ = read_yaml(text, config_file)
    for assignment in overrides:
        apply_override(raw, parse_override(assignment), model)
    return str(raw.get("project", model.model_fields["project"].default))


def _folder() -> Path:
    """Return ``<home>/configs``."""
    return Settings().root / "configs"


def _path(config_file: str, model: type[MethodConfig]) -> Path:
    """Return the path of a configuration file that is not an example.

    Raises:
        ConfigError: it is not there.
    """
    folder = _folder()
    try:
        path = folder / Path(config_file).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home folder of an unknown user
        raise ConfigError(f"config_file cannot be looked up: {error}", hint=f"it is one of {', '.join(examples())}, or a path") from None
    if not there:
        known = [*examples(), *(file.name for file in folder.glob("*.yaml"))]
        raise ConfigError(
            f"config_file: {config_file!r} is neither an example nor found at {path}",
            hint=f"{did_you_mean(config_file, known)}; to write one, start from {model.example}",
        )
    return path


def examples() -> list[str]:
    """Return the names of the configurations that come with the package."""
    files = (importlib.resources.files("infra") / "configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


# ------------------------------------------------------------------------------------------------------------- mechanism


def _without_nulls(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        if field.get("default", ...) is None:
            del field["default"]
        members = [member for member in field.pop("anyOf", []) if member != {"type": "null"}]
        field |= members[0] | field if len(members) == 1 else {"anyOf": members} if members else {}


class Section(BaseModel):
    """Fields that a form shows in one card. Blank ones are None here, and absent in the schema and wherever Prefect keeps parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True, json_schema_extra=_without_nulls)

    def overrides(self) -> Iterator[Override]:
        """Yield the fields that are filled in, by the keys they set."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is not None:
                yield key_of(field.description), value

    @model_serializer(mode="wrap")
    def _filled_in(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


def key_of(description: str | None) -> str:
    """Return the key that a field sets: the end of its description, which the form shows."""
    assert description is not None
    return description.rsplit("[", 1)[1].removesuffix("]")


def _key(path: str, description: str = "", *, root: type[BaseModel] = SelfTrainConfig, **more: Any) -> Any:
    """Return a field that sets one key, blank at first, with that key's own bounds; and description, unless another is given."""
    source = _find(root, path.split("."))
    field = Field(None, description=f"{description or source.description} [{path}]", **more)
    # Bounds and choices; the configuration itself runs the validators, which would fail on a blank.
    field.metadata = [rule for rule in source.metadata if not isinstance(rule, AfterValidator)]
    return field


def _find(model: type[BaseModel], path: list[str]) -> Any:
    """Return the field at a key path; list items go by index."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    field, rest = fields[path[0]], path[1:]
    if not rest:
        return field
    annotation: Any = field.annotation
    if rest[0].isdigit():
        annotation, rest = get_args(annotation)[0], rest[1:]
    return _find(annotation, rest)


class _Registered:
    """JSON schema of a name out of a registry, plug-ins included; read when a schema is made."""

    def __init__(self, names: Callable[[], Iterable[str]]):
        self._names = names

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._names())}


def _losses() -> Iterable[str]:
    from dora_core.losses import registered_losses  # imports torch

    return registered_losses()


LossName = Annotated[str, _Registered(_losses)]
Auto = Annotated[Literal["auto"], Field(title="auto")]
Assignment = Annotated[str, Field(pattern=r"^[^\s=.]+(\.[^\s=.]+)*=", title="KEY=VALUE")]
ConfigFile = Annotated[str, Field(min_length=1)]


# -------------------------------------------------------------------------------------------------------------- sections


class Data(Section):
    """Training data."""

    path: str | None = _key("data.train.0.path", "Parquet or JSONL file, folder, or dataset name, in place of the file's first input.")
    golden_path: str | None = _key("data.golden.0.path", "Trusted (prompt, response) pairs, in place of the file's first golden input.")
    golden_sources: list[str] | None = _key("data.golden_sources")


class Method(Section):
    """Loss, robust objective and calibration factors."""

    loss: LossName | None = Field(None, description="Preference loss; one named here starts from its own defaults. [align.loss.name]")
    beta: float | None = Field(None, gt=0, le=100, description="β of the loss; losses differ in scale. [align.loss.beta]")
    objective: str | None = _key("align.objective.name")
    lam: Annotated[float, Field(gt=0, title="number")] | Auto | None = _key(
        "align.objective.lambda", "λ: a number, or auto: chosen by the effective sample size. Unused by erm and reweight.", alias="lambda"
    )
    form: Literal["mixture", "paper", "released"] | None = _key("calibration.form")

    def overrides(self) -> Iterator[Override]:
        if self.loss is not None:
            yield "align.loss", {}  # another loss has other parameters
        yield from super().overrides()


class Training(Section):
    """Settings of the alignment."""

    epochs: float | None = _key("align.optimization.epochs")
    max_steps: int | None = _key("align.optimization.max_steps")
    batch_size: int | None = _key("align.optimization.batch_size")
    learning_rate: float | None = _key("align.optimization.learning_rate")
    seed: int | None = _key("align.optimization.seed")


class Promotion(Section):
    """Promotion of the model."""

    mode: Literal["auto", "ask", "never"] | None = _key("promotion.mode")
    model_name: str | None = _key("promotion.model_name")
    ask_timeout_hours: float | None = _key("promotion.ask_timeout_hours")


class Calibration(Section):
    """From classifiers to factors."""

    form: Literal["mixture", "paper", "released"] | None = _key("calibration.form")
    ratio: Literal["conditional", "joint"] | None = _key("calibration.ratio")
    balance: Literal["report", "enforce"] | None = _key("calibration.balance")
    temper: Annotated[float, Field(ge=0, le=1, title="number")] | Auto | None = _key("calibration.temper")
    cap_quantile: float | None = _key("calibration.cap_quantile")
    aggregate: Literal["mean", "min", "chosen", "product"] | None = _key("calibration.aggregate")


class Rounds(Section):
    """Use of the policy's own samples."""

    rounds: int | None = _key("rounds.rounds")
    strategy: Strategy | None = _key("rounds.strategy")
    prompts: int | None = _key("rounds.prompts")
    samples: int | None = _key("generate.samples")
    temperature: float | None = _key("generate.temperature")
    given_fraction: float | None = _key("rounds.mix.given_fraction")


class Grid(Section):
    """Comparisons and their repetitions."""

    seeds: list[Annotated[int, Field(ge=0)]] | None = _key("seeds", root=StudyConfig)
    tables: list[TableName] | None = _key("tables", root=StudyConfig)
    prompts: int | None = _key("testbed.prompts", root=StudyConfig)
