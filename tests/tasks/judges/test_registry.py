"""Every kind of judge has settings, a file and a descriptor."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import tasks.judges
from dora_core.config.execution import Endpoint, Execution
from dora_core.config.judging import GoldJudge, ImplicitJudge, Judge, LLMJudge, RewardModelJudge
from dora_core.config.method import ModelConfig
from tasks.judges.registry import JUDGES
from tasks.runtime.stage import StageRef
from tasks.stages import judge

RECORDS = StageRef(stage="ingest", digest="0" * 64)
NAMED = ModelConfig(source="reward-model")


def test_every_kind_of_the_configuration_has_a_judge_and_every_file_is_one() -> None:
    kinds = {config.model_fields["kind"].default: config for config in get_args(get_args(Judge)[0])}
    assert {kind: one.config for kind, one in JUDGES.items()} == kinds
    folder = Path(tasks.judges.__path__[0])
    assert {path.stem for path in folder.glob("*.py")} == {*JUDGES, "__init__", "base", "registry"}


def test_the_stage_reads_the_facts_of_every_judge() -> None:
    names = {name for one in JUDGES.values() for name in one.facts.model_fields}
    assert set(judge.STAGE.facts.model_fields) == names >= {"comparisons", "requests", "warnings"}
    written = {"comparisons": 3, "unparsable": 0, "position_disagreement": None, "tie_share": 0.5, "requests": 6, "reused": 0}
    for facts in ({}, written):
        assert judge.STAGE.facts.model_validate(facts).dump() == facts


@pytest.mark.parametrize(
    ("given", "fields", "message"),
    [
        (RewardModelJudge(), {}, "give the reward stage as `model`"),
        (ImplicitJudge(), {"model": NAMED}, "give both as `model` and `reference`"),
        (LLMJudge(model="x"), {}, "judge.kind=llm asks a server: give its address in execution.endpoint.url"),
    ],
)
def test_a_spec_without_what_its_judge_needs_is_refused(given: Judge, fields: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        judge.Spec(records=RECORDS, judge=given, **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        (GoldJudge(), {}),
        (GoldJudge(), {"execution": Execution(endpoint=Endpoint(url="http://127.0.0.1:9/v1"))}),
        (RewardModelJudge(), {"model": RECORDS}),
        (RewardModelJudge(model=NAMED), {}),
        (ImplicitJudge(), {"model": NAMED, "reference": NAMED}),
        (LLMJudge(model="x"), {"execution": Execution(endpoint=Endpoint(url="http://127.0.0.1:9/v1"))}),
    ],
)
def test_a_complete_spec_is_the_same_after_a_round_trip(given: Judge, fields: dict) -> None:
    spec = judge.Spec(records=RECORDS, judge=given, **fields)
    again = judge.Spec.model_validate(spec.model_dump(mode="json", by_alias=True))
    assert again == spec and again.digest() == spec.digest()
    assert TypeAdapter(Judge).validate_python(given.model_dump(mode="json")) == given
