"""Settings of alignment: the loss is parsed by the registry, written back completely, and described to Prefect's form."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from dora_core.config.alignment import AlignConfig
from dora_core.losses import DPO, LOSSES


def test_the_form_of_prefect_knows_every_loss() -> None:
    choices = TypeAdapter(AlignConfig).json_schema()["properties"]["loss"]["anyOf"]
    assert [choice["properties"]["name"]["const"] for choice in choices] == sorted(LOSSES)


def test_a_loss_survives_json_and_pickle_inside_its_configuration() -> None:
    config = AlignConfig.model_validate({"loss": {"name": "simpo", "beta": 3.0, "pairs": "all"}})
    assert AlignConfig.model_validate_json(config.model_dump_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_defaults_are_dpo_under_dora() -> None:
    config = AlignConfig()
    assert isinstance(config.loss, DPO)
    assert (config.objective.name, config.objective.lam) == ("dora", "auto")


def test_a_dump_has_every_parameter_of_the_loss() -> None:
    dumped = AlignConfig.model_validate({"loss": "rpo"}).model_dump(mode="json")
    assert dumped["loss"] == {"name": "rpo", "beta": 0.1, "pairs": "best_worst", "sft_weight": 1.0}
    assert dumped["objective"]["lambda"] == "auto"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValidationError, match="unknown loss 'dppo'; did you mean 'dpo'"):
        AlignConfig.model_validate({"loss": "dppo"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        AlignConfig.model_validate({"loss": {"name": "dpo", "bta": 1.0}})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        AlignConfig(max_responses=1)


def test_settings_do_not_import_torch() -> None:
    """The planner reads them, and torch costs a second at import."""
    program = "import sys, dora_core.config.alignment, dora_core.config.judging, dora_core.config.rounds; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
