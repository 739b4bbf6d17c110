"""Lineages of champions as the store has them, and where a run continues from each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.loading import load_config
from flows.planning.continuation import Continuation, continuation
from flows.planning.plan import build_plan
from infra.store.store import Store
from infra.tracking import model_registry
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import StageRef, execute
from tasks.stages.registry import STAGES

MODEL = ModelConfig(hidden_size=32, heads=2)
NIGHTLY = """
project: nightly
data: {{train: [{{path: {data}}}], holdout_fraction: 0.3}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320, start: champion}}
classifier: {{encoder: {{hidden_size: 16, layers: 1, heads: 2, vocab_size: 400}}, epochs: 1, folds: 2}}
sft: {{optimization: {{max_steps: 4, batch_size: 8}}}}
align: {{optimization: {{max_steps: 2, batch_size: 8, lora: {{rank: 4}}}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100}}
compare: null
execution: {{default: {{workers: 0}}}}
"""


class Lineage:
    """Results in a store, as far as a plan reads them: their specs."""

    def __init__(self, folder: Path):
        self.store, self._made = Store(str(folder)), 0

    def done(self, stage: str, **spec: Any) -> StageRef:
        self._made += 1
        ref = StageRef(stage=stage, digest=f"{self._made:064x}")
        payload = {
            key: value.model_dump(mode="json") if isinstance(value, StageRef | ModelConfig) else value for key, value in spec.items()
        }
        result = {"stage": stage, "digest": ref.digest, "seconds": 1.0, "facts": {}, "spec": payload}
        self.store.mark_done(self.store.folder(stage, ref.digest), result)  # type: ignore[typeddict-item]
        return ref

    def night(self, start: StageRef | None, records: StageRef, stage: str = "align") -> StageRef:
        return self.done(stage, model=MODEL, start=start, records=records)

    def continued(self, champion: StageRef | None, given: StageRef, model: ModelConfig = MODEL) -> tuple[Continuation | None, list[str]]:
        notes = list[str]()
        return continuation(champion, given, model, self.store, notes.append), notes


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path / "store")


def test_without_a_champion_the_base_is_the_start(lineage: Lineage) -> None:
    found, notes = lineage.continued(None, lineage.done("ingest"))
    assert found is None and "no champion yet: this run starts from the base" in notes[0]


def test_three_nights_have_one_base(lineage: Lineage) -> None:
    first, second, third = (lineage.done("ingest", night=i) for i in range(3))
    base = lineage.night(None, first, "sft")
    one = lineage.night(base, first)
    assert lineage.continued(one, second) == (Continuation(one, first, base), [])
    two = lineage.night(one, lineage.done("replay", records=second, earlier=first))
    assert lineage.continued(two, third) == (Continuation(two, second, base), [])


def test_a_model_without_a_supervised_start_is_the_base_itself(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    one = lineage.night(None, first)
    assert lineage.continued(one, lineage.done("ingest", other=1))[0] == Continuation(one, first, None)


def test_rounds_lead_to_the_records_they_were_mixed_from(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    mixture = lineage.done("mix", records=first)
    base = lineage.night(None, first, "sft")
    learned = lineage.night(lineage.night(base, first), mixture)
    assert lineage.continued(learned, lineage.done("ingest", other=1))[0] == Continuation(learned, first, base)


def test_the_champions_own_records_start_where_it_did(lineage: Lineage) -> None:
    first, second = lineage.done("ingest"), lineage.done("ingest", other=1)
    base = lineage.night(None, first, "sft")
    one = lineage.night(base, first)
    found, notes = lineage.continued(one, first)
    assert found is None and "these very records, from the base" in notes[0]
    two = lineage.night(one, lineage.done("replay", records=second, earlier=first))
    found, notes = lineage.continued(two, second)
    assert found == Continuation(one, first, base) and "starts where the champion's did" in notes[0]


def test_another_model_or_a_lost_lineage_is_refused(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    one = lineage.night(None, first)
    with pytest.raises(ConfigError, match="trained from tiny of width 32 and depth 2, and policy names tiny of width 64"):
        lineage.continued(one, lineage.done("ingest", other=1), MODEL.evolve(hidden_size=64))
    orphan = lineage.night(StageRef(stage="sft", digest="f" * 64), first)
    with pytest.raises(ConfigError, match="sft/ffffffffffff of its lineage is not in"):
        lineage.continued(orphan, lineage.done("ingest", other=2))
    forgotten = lineage.night(None, StageRef(stage="ingest", digest="e" * 64))
    with pytest.raises(ConfigError, match="ingest/eeeeeeeeeeee of its lineage"):
        lineage.continued(forgotten, lineage.done("ingest", other=3))


@pytest.mark.component
def test_two_nights_of_a_real_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of two nights, computed in this process; the second continues with adapters from the first night's merged weights."""
    (tmp_path / "c.yaml").write_text(NIGHTLY.format(data=tmp_path / "data.jsonl"))
    rows = Testbed(TestbedConfig(prompts=90, responses_per_prompt=3)).generate()
    store, tags = Store(str(tmp_path / "store")), dict[str, dict[str, str]]()
    monkeypatch.setattr(model_registry, "alias_tags", lambda uri, name: tags)

    def night(records: int) -> dict[str, StageSpec]:
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:records]))
        plan = build_plan(load_config(tmp_path / "c.yaml"), store, until="evaluate", mlflow_uri="sqlite:///m.db")
        for stage in plan.to_run:
            execute(stage.spec, STAGES[stage.stage].run, store)
        return {stage.label: stage.spec for stage in plan.stages}

    first = night(60)
    tags["champion"] = {"dora.stage": "align", "dora.digest": first["align"].digest()}
    second = night(90)
    result = store.read_result("replay", second["replay"].digest())
    assert result is not None and result["facts"]["new"] > 0 and result["facts"]["replayed"] == round(result["facts"]["new"] / 3)
    # training asserts that the policy is its reference at the first step: the champion is what was loaded, and what was scored
    trained = store.read_result("align", second["align"].digest())
    assert trained is not None and trained["rows"] <= result["rows"] and trained["spec"]["start"]["digest"] == first["align"].digest()
    evaluated = store.read_result("evaluate", second["evaluate"].digest())
    assert evaluated is not None and evaluated["spec"]["start"]["digest"] == first["sft"].digest()
    rules = {rule["name"]: rule for rule in evaluated["facts"]["gate"]["rules"]}
    assert rules["kl"]["threshold"] == 50.0 and rules["kl"]["value"] == pytest.approx(evaluated["facts"]["kl"]["value"])
