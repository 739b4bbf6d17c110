"""The form of the deployments: what Prefect's UI draws, what its API refuses, and what becomes of what is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from dora_core.errors import ConfigError
from flows.config.demo import demo_config
from flows.config.models import RealignConfig, SelfTrainConfig, StudyConfig
from flows.deployment import form_flows as served
from flows.deployment.forms import Calibration, Data, Grid, Method, Promotion, Rounds, Section, Training, configure, examples

FLOWS = [served.realign, served.calibrate, served.self_train, served.study]
SECTIONS: dict[type[Section], type[RealignConfig | StudyConfig]] = {
    **dict.fromkeys((Data, Method, Training, Promotion, Calibration, Rounds), SelfTrainConfig),
    Grid: StudyConfig,
}


def schema_of(flow: Any) -> dict[str, Any]:
    """As Prefect stores it."""
    return parameter_schema(flow).model_dump(exclude_unset=True)


@pytest.fixture
def home(tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a configuration that a person wrote."""
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "data.parquet").symlink_to(mixture)
    mine = {
        "project": "mine",
        "data": {"train": [{"path": "data.parquet", "columns": {"task": "prompt"}}]},
        "align": {"loss": {"name": "dpo", "beta": 0.3}, "optimization": {"learning_rate": 2e-4}},
    }
    (tmp_path / "configs" / "mine.yaml").write_text(yaml.safe_dump(mine))
    return tmp_path


# -------------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_form_has_two_levels_and_describes_every_field(flow: Any) -> None:
    schema = schema_of(flow)
    for name, field in schema["properties"].items():
        if "$ref" not in field:
            assert is_plain(field) and field["description"], name
            continue
        section = schema["definitions"][field["$ref"].removeprefix("#/definitions/")]
        assert section["additionalProperties"] is False and (section | field)["description"], name
        assert field["default"] == {}, "nothing is filled in"
        for inner, input_ in section["properties"].items():
            assert input_["description"] and input_["title"], f"{name}.{inner}"
            assert is_plain(input_), f"{name}.{inner}"
            assert "default" not in input_, "a default would hide what the file says"


def is_plain(field: dict[str, Any]) -> bool:
    """An input, a select, a list of them, or tabs of inputs; never a nested object, a null or raw JSON."""
    if "anyOf" in field:
        return all(is_plain(member) and member["title"] for member in field["anyOf"])
    return field["type"] in ("string", "number", "integer", "boolean") or (field["type"] == "array" and is_plain(field["items"]))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_bounds_and_choices_are_those_of_the_key_a_field_sets(section: type[Section]) -> None:
    fields = section.model_json_schema(by_alias=True)["properties"]
    whole = SECTIONS[section].model_json_schema(by_alias=True)
    for name, field in fields.items():
        key = field["description"].rsplit("[", 1)[1].removesuffix("]")
        if key.startswith("align.loss") or key == "calibration.temper":  # a union of all losses; bounds that a validator checks
            continue
        for rule, value in rules(field).items():
            assert rules(find(whole, key.split("."))).get(rule) == value, (name, rule)


def find(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    node: dict[str, Any] = schema
    for part in path:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = node["items"] if part.isdigit() else node["properties"][part]
    return node


def rules(field: dict[str, Any]) -> dict[str, Any]:
    """Bounds and choices, of all alternatives together."""
    found = {}
    for part in (field, field.get("items", {}), *field.get("anyOf", [])):
        found |= {
            rule: part[rule] for rule in ("enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if rule in part
        }
        found |= {rule: part[rule] for rule in ("pattern", "minLength", "minItems") if rule in part}
    return found


# ------------------------------------------------------------------------------------------------------ what is refused


FILLED: dict[str, dict[str, Any]] = {
    "realign": {
        "config_file": "/data/mine.yaml",
        "data": {"path": "/data/new.parquet", "golden_sources": ["human*"]},
        "method": {"loss": "simpo", "beta": 2.5, "objective": "dora_tilted", "lambda": 0.5, "form": "paper"},
        "training": {"epochs": 1.5, "max_steps": 100, "batch_size": 8, "learning_rate": 1e-6, "seed": 1},
        "promotion": {"mode": "ask", "model_name": "chat"},
        "until": "evaluate",
        "overrides": ["calibration.shares.gpt-4=0.5", "compare=null", "sft.enabled="],
    },
    "calibrate": {"calibration": {"temper": 0.5, "cap_quantile": 0.9, "aggregate": "min"}},
    "self-train": {"rounds": {"rounds": 2, "strategy": "raft", "samples": 4}, "method": {"lambda": "auto"}},
    "study": {"grid": {"seeds": [0, 7], "tables": ["noise", "pairwise"]}},
}


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_filled_and_an_empty_form_are_accepted(flow: Any) -> None:
    for parameters in (FILLED[flow.name], {}):
        validate(parameters, schema_of(flow), raise_on_error=True)
        flow.validate_parameters(parameters)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a learning rate of zero": ({"training": {"learning_rate": 0}}, "less than or equal to the minimum of 0"),
    "a fraction of a step": ({"training": {"max_steps": 1.5}}, "not valid under any"),
    "a negative λ": ({"method": {"lambda": -1}}, "minimum of 0"),
    "a word for λ": ({"method": {"lambda": "large"}}, "'auto' was expected"),
    "an unknown loss": ({"method": {"loss": "ddpo"}}, "is not one of"),
    "an unknown objective": ({"method": {"objective": "best"}}, "is not one of"),
    "an unknown field": ({"training": {"lr": 1e-4}}, "Additional properties"),
    "an unknown mode": ({"promotion": {"mode": "perhaps"}}, "is not one of"),
    "a name with a slash": ({"promotion": {"model_name": "a/b"}}, "does not match"),
    "an override without a value": ({"overrides": ["align.loss"]}, "does not match"),
    "text for a section": ({"data": "mixture.parquet"}, "is not of type"),
    "a stage that is no end": ({"until": "ingest"}, "is not one of"),
    "no file": ({"config_file": ""}, "non-empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_the_form(name: str) -> None:
    parameters, words = BAD[name]
    with pytest.raises(ValidationError, match=words):
        validate(parameters, schema_of(served.realign), raise_on_error=True)


# ------------------------------------------------------------------------------------------------- what becomes of it


def test_a_blank_form_is_the_file(home: Path) -> None:
    config = configure(RealignConfig, "mine.yaml", [Data(), Method(), Training()])
    assert (config.project, config.align.loss.model_dump()["beta"], config.align.optimization.learning_rate) == ("mine", 0.3, 2e-4)
    assert config == configure(RealignConfig, str(home / "configs" / "mine.yaml"))


def test_what_is_filled_in_replaces_what_the_file_says_and_overrides_come_last(home: Path, mixture: Path) -> None:
    sections = [Data(path=str(mixture)), Method(beta=0.2, lam=0.5), Training(max_steps=3, learning_rate=1e-7), Promotion(mode="never")]
    config = configure(RealignConfig, "mine.yaml", sections, ["align.optimization.max_steps=5", "compare=null"])
    assert config.data.train[0].path == str(mixture)
    assert config.data.train[0].columns.task == "prompt", "the columns of the file's input stay"
    assert (config.align.loss.name, config.align.loss.model_dump()["beta"], config.align.objective.lam) == ("dpo", 0.2, 0.5)
    assert (config.align.optimization.max_steps, config.align.optimization.learning_rate) == (5, 1e-7)
    assert (config.promotion.mode, config.compare) == ("never", None)


def test_another_loss_starts_from_its_own_defaults(home: Path) -> None:
    assert configure(RealignConfig, "mine.yaml", [Method(loss="simpo")]).align.loss.model_dump()["beta"] == 2.0


def test_mistakes_that_depend_on_more_than_one_value_are_told_in_the_words_of_the_command_line(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"align\.loss\.beta: must be at least 1"):
        configure(RealignConfig, "mine.yaml", [Method(loss="ln_dpo", beta=0.1)], ["align.loss={name: simpo, beta: 0.5}"])
    with pytest.raises(ConfigError, match=r"data\.train\.0\.path: no such file"):
        configure(RealignConfig, "mine.yaml", [Data(path="./gone.parquet")])
    with pytest.raises(ConfigError, match=r"config_file: 'mein\.yaml' is neither an example nor found at .*/configs/mein\.yaml") as error:
        configure(RealignConfig, "mein.yaml")
    assert "did you mean 'mine.yaml'?" in error.value.hint and "infra/configs/demo.yaml" in error.value.hint


def test_examples_are_known_by_name(home: Path, mixture: Path) -> None:
    assert {"demo", "listwise", "self-train", "study-quick"} <= set(examples())
    assert configure(StudyConfig, "study-quick", [Grid(seeds=[3], tables=["noise"])]).seeds == [3]
    config = configure(SelfTrainConfig, "self-train", [Data(path=str(mixture)), Rounds(rounds=1, given_fraction=0.25)])
    assert (config.rounds.rounds, config.rounds.mix.given_fraction, config.project) == (1, 0.25, "self-train")


def test_the_demo_brings_its_data(home: Path) -> None:
    assert configure(RealignConfig, "demo") == demo_config(home / "demo")
    config = configure(SelfTrainConfig, "demo", [Rounds(samples=2)], ["project=smoke"])
    assert (config.generate.samples, config.project, config.evaluate.twins) == (2, "smoke", [])
