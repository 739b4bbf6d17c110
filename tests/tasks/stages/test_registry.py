"""The list of stages, and the facts of a small self-training run: parsing and dumping them changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_core.config.data import DataSource
from dora_core.config.method import CalibrationConfig
from dora_core.errors import StoreError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.loading import load_config
from flows.config.models import SelfTrainConfig
from flows.planning.plan import build_plan
from infra.store.store import Store
from tasks.runtime.facts import AnyFacts
from tasks.runtime.stage import StageRef, execute, write_spec
from tasks.stages import batch, exact_densities, prompts
from tasks.stages.registry import STAGES, parse_result
from tests.tasks.conftest import IN_PROCESS
from tests.tasks.facts import assert_round_trip

PARSED_ELSEWHERE = {"promote", "study", "value", "race", "benchmarks", "suggest", "replay", "trial", "tune", "finals"}
"""Stages whose real results are parsed and dumped in their own tests."""

WORLD = TestbedConfig(prompts=60, responses_per_prompt=3)
CONFIG = """
project: loop
data: {{train: [{{path: {data}}}], holdout_fraction: 0.2}}
text: {{max_prompt_tokens: 32, max_response_tokens: 32}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
classifier: {{encoder: {{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}}, epochs: 1, folds: 2}}
sft: {{optimization: {{epochs: 1, batch_size: 8, learning_rate: 3.0e-3}}}}
align: {{optimization: {{epochs: 1, batch_size: 8}}}}
evaluate: {{kl_prompts: 4, kl_max_new_tokens: 64, bootstrap_samples: 100}}  # longer than what it was trained on
rounds: {{rounds: 1, mix: {{given_fraction: 0.5}}}}
generate: {{samples: 3, max_new_tokens: 16, temperature: 1.0}}
judge: &judge {{kind: reward_model, training: {{data: all, optimization: {{epochs: 1, batch_size: 16}}}}}}
compare: {{judge: *judge, generate: {{max_new_tokens: 16}}}}
execution: {{default: {{workers: 0}}}}
"""


def test_every_stage_has_a_facts_model_of_its_own_name() -> None:
    assert all(name == stage.spec.stage for name, stage in STAGES.items())
    assert not [name for name, stage in STAGES.items() if stage.facts is AnyFacts]


def test_every_field_that_keeps_another_stage_is_one_of_the_facts() -> None:
    kept = {(name, field) for name, stage in STAGES.items() for field in stage.keeps}
    assert kept == {("classify", "classifier")}
    assert all(STAGES[name].facts.model_fields[field].annotation is StageRef for name, field in kept)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every stage of a self-training run but the promotion, and the stages of tests and files: really run, one after the other."""
    folder = tmp_path_factory.mktemp("loop")
    data = Testbed(WORLD).write(folder / "data.parquet")
    (folder / "c.yaml").write_text(CONFIG.format(data=data))
    store = Store(str(folder / "store"))
    specs = [stage.spec for stage in build_plan(load_config(folder / "c.yaml", model=SelfTrainConfig), store).stages[:-1]]
    records = specs[0].ref()
    specs.append(exact_densities.Spec(records=records, testbed=WORLD, calibration=CalibrationConfig()))
    (folder / "prompts.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n')
    specs.append(prompts.plan("prompts", DataSource(path=str(folder / "prompts.jsonl"))))
    for spec in specs:
        execute(spec, STAGES[spec.stage].run, store)
    (folder / "more.jsonl").write_text('{"prompt": "Why is the sea blue?"}\n')
    more = prompts.plan("prompts", DataSource(path=str(folder / "more.jsonl"))).evolve(execution=IN_PROCESS)
    write_spec(more, store)
    shared = batch.Spec(stages=[records, more.ref()], execution=IN_PROCESS)
    execute(shared, batch.run, store)
    return store


def test_facts_of_real_runs_are_unchanged_by_parsing_and_dumping(store: Store) -> None:
    results = [json.loads(path.read_text()) for path in store.local_root.glob("*/*/result.json")]
    for result in results:
        assert_round_trip(result)
    assert {result["stage"] for result in results} == STAGES.keys() - PARSED_ELSEWHERE


def test_headlines_and_events_read_typed_facts(store: Store) -> None:
    for path in store.local_root.glob("*/*/result.json"):
        result = parse_result(json.loads(path.read_text()))
        stage = STAGES[result.stage]
        assert stage.headline(result).strip()
        event = stage.event(result, store)
        assert event is None or event.message


def test_an_unknown_fact_is_refused(store: Store, tmp_path: Path) -> None:
    (path,) = store.local_root.glob("truth/*/result.json")
    content = json.loads(path.read_text())
    content["facts"]["unheard_of"] = 1
    with pytest.raises(StoreError, match="unheard_of: Extra inputs are not permitted"):
        parse_result(content)
