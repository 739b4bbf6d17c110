"""The real flow with a round: killed on the way and gone on with, it computes what an uninterrupted one does; guard rails end it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.loading import load_config
from flows.config.models import SelfTrainConfig
from flows.planning.plan import build_plan
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.registry import STAGES
from tests.faults import Recovery
from tests.flows.dora import Dora, wait_for

pytestmark = pytest.mark.component

CONFIG = """
project: loop
data: {{train: [{{path: {data}}}], holdout_fraction: 0.2}}
text: {{max_prompt_tokens: 32, max_response_tokens: 32}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
classifier: {{encoder: {{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}}, epochs: 1, folds: 2}}
sft: {{optimization: {{epochs: 2, batch_size: 8, learning_rate: 3.0e-3}}}}
align: {{optimization: {{epochs: 1, batch_size: 8}}}}
evaluate: {{kl_prompts: 4, kl_max_new_tokens: 8, bootstrap_samples: 100}}
rounds: {{rounds: 1, mix: {{given_fraction: 0.5}}, guard: {guard}}}
generate: {{samples: 3, max_new_tokens: 24, temperature: {temperature}}}
judge: &judge {{kind: reward_model, training: {{data: all, optimization: {{epochs: 1, batch_size: 16}}}}}}
compare: {{judge: *judge, generate: {{max_new_tokens: 24}}}}
execution: {{default: {{workers: 0}}}}
"""
LAX = "{max_kl: null, min_distinct: null, max_self_bleu: null, max_source_regression: null}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Testbed(TestbedConfig(prompts=60, responses_per_prompt=3)).write(tmp_path_factory.mktemp("loop") / "data.parquet")


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_database: Path, empty_prefect_database: Path) -> Iterator[Dora]:
    """One home for both tests: what round 0 computes is computed once."""
    dora = Dora(tmp_path_factory.mktemp("dora"))
    dora.use_databases(mlflow=empty_mlflow_database, prefect=empty_prefect_database)
    yield dora
    for process in dora.processes():
        process.kill()


@pytest.fixture(scope="module")
def config(data: Path) -> Callable[..., str]:
    return lambda guard=LAX, temperature=1.0: CONFIG.format(data=data, guard=guard, temperature=temperature)


def tables(store: Store) -> dict[str, dict[str, str]]:
    """Checksums of every file of every finished stage; a batch has none of its own, and its members depend on what was left to do."""
    found = {}
    for stage in {*store.list("")} - {"batch", "promote"}:
        for digest in store.list(stage):
            result = store.read_result(stage, digest)
            if result is not None:
                found[f"{stage}/{digest}"] = {name: file["sha256"] for name, file in result["files"].items()}
    return found


def uninterrupted(folder: Path, config: str) -> Store:
    """Every stage but the promotion, one after the other in this process."""
    (folder / "c.yaml").write_text(config)
    store = Store(str(folder / "store"))
    for stage in build_plan(load_config(folder / "c.yaml", model=SelfTrainConfig), store).stages[:-1]:
        execute(stage.spec, STAGES[stage.stage].run, store)
    return store


@pytest.mark.chaos
@pytest.mark.fault(7, 8)
def test_a_kill_in_a_round_changes_no_byte(dora: Dora, config: Callable[..., str], tmp_path: Path, recovery: Recovery) -> None:
    process = dora.start("self-train", config())
    wait_for(process, "r1 align: runs")
    process.kill()  # the command itself, in the middle of the round's training
    process.communicate()
    for left in dora.processes():
        left.kill()
    recovery.begins()
    manifest = dora.run("self-train", config())
    recovery.ends()
    states = {s["label"]: s["state"] for s in manifest["stages"]}
    assert manifest["status"] == "completed" and states["r1 mix"] == "cached" and states["promote"] == "ran"
    assert ("round 1",) in dora.mlflow("select name from runs")
    assert tables(dora.store()) == tables(uninterrupted(tmp_path, config()))


def test_a_generator_that_collapses_is_stopped_with_its_reason(dora: Dora, config: Callable[..., str]) -> None:
    process = dora.start("self-train", config("{}", 0.0), "--json")
    output, log = process.communicate(timeout=300)
    assert process.returncode == 1, log
    error = json.loads(output)["error"]
    assert error["type"] == "RunStopped" and "r1 guard samples" in error["message"] and "self-BLEU" in error["message"]
    assert "rounds.guard" in error["hint"]
    manifest = max(dora.manifests(), key=lambda run: run["started"])
    states = {s["label"]: s["state"] for s in manifest["stages"]}
    assert manifest["status"] == "stopped" and states["r1 guard samples"] == "ran" and states["r1 judge"] == "pending"
    assert (dora.home / "reports" / f"{manifest['run_id']}.html").read_text().startswith("<!") and dora.processes() == []
