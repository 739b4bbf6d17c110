"""The descriptor of a judge and the spec that it reads."""

from __future__ import annotations

import numpy as np

from dora_core.config.judging import GoldJudge, ImplicitJudge, LLMJudge, RewardModelJudge
from dora_core.config.method import ModelConfig
from tasks.judges.base import JudgeKind, JudgeSpec, Scored
from tasks.runtime.facts import Facts
from tasks.runtime.stage import StageRef

RECORDS, SAMPLES = StageRef(stage="ingest", digest="a" * 64), StageRef(stage="generate", digest="b" * 64)


def test_the_kind_is_that_of_the_settings() -> None:
    kinds = [JudgeKind(config, lambda spec, context, rows: Scored(np.zeros(rows.num_rows))).kind for config in (GoldJudge, LLMJudge)]
    assert kinds == ["gold", "llm"]


def test_a_judge_lacks_nothing_and_has_no_facts_unless_it_says_so() -> None:
    judge = JudgeKind(RewardModelJudge, lambda spec, context, rows: Scored(np.zeros(rows.num_rows)))
    assert judge.lacks(JudgeSpec(records=RECORDS, judge=RewardModelJudge())) is None and judge.facts is Facts
    assert Scored(np.zeros(2)).facts.dump() == {}


def test_own_responses_of_the_held_out_records_are_judged_by_default() -> None:
    spec = JudgeSpec(records=RECORDS, judge=GoldJudge())
    assert (spec.samples, spec.split) == (None, "eval") and spec.inputs() == {"records": RECORDS}
    assert spec.evolve(samples=SAMPLES).inputs() == {"records": RECORDS, "samples": SAMPLES}


def test_a_model_is_a_stage_or_a_name_and_every_setting_counts() -> None:
    named = JudgeSpec(records=RECORDS, judge=ImplicitJudge(), model=ModelConfig(source="policy"), reference=SAMPLES)
    assert set(named.inputs()) == {"records", "reference"}
    others = [named.evolve(model=SAMPLES), named.evolve(split="train"), named.evolve(judge=GoldJudge())]
    assert len({spec.digest() for spec in [named, *others]}) == 4
    assert JudgeSpec.model_validate(named.model_dump(mode="json")) == named
