"""The stage ``evaluate`` in one process and on two actors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute  # pa.compute
import pyarrow.parquet as pq
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import EvaluateConfig, GateConfig, OptimizationConfig, SftConfig
from dora_core.errors import ConfigError
from dora_core.evaluation.metrics import Pairs
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, StageSpec, execute
from tasks.stages import align, evaluate, sft
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY, align_spec
from tests.tasks.facts import wins
from tests.tasks.handmade import finished

Start = tuple[Path, StageRef, StageRef, StageRef]


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))


def output(store: Store, spec: StageSpec, name: str) -> pa.Table:
    return pq.read_table(store.fetch(spec.stage, spec.digest()) / name)


def records_of(store: Store, ref: StageRef, split: str) -> list[dict]:
    return pq.read_table(store.fetch(ref.stage, ref.digest) / "records.parquet", filters=[("split", "=", split)]).to_pylist()


def evaluate_spec(start: Start, policy: StageRef, execution: Execution = IN_PROCESS, **other) -> evaluate.Spec:
    _, records, first, reference = start
    stages = {"records": records, "policy": policy, "reference": reference, "start": first}
    config = {"model": TINY, "text": TEXT, "gate": GateConfig(), "golden_sources": GOLDEN, "execution": execution}
    return evaluate.Spec(**{"evaluate": EvaluateConfig(kl_prompts=20, kl_max_new_tokens=12)} | stages | config | other)


def test_accuracy_lift_and_gate_of_an_aligned_policy(pipeline_start: Start, store: Store) -> None:
    optimization = OptimizationConfig(epochs=2.0, batch_size=8, learning_rate=1e-3)
    config = AlignConfig(loss={"name": "dpo_pl"}, objective={"name": "dro"}, optimization=optimization)
    aligned = align_spec(pipeline_start, config)
    execute(aligned, align.run, store)
    options = EvaluateConfig(kl_prompts=20, kl_max_new_tokens=16)
    evaluation = evaluate_spec(pipeline_start, aligned.ref(), twins={"erm": aligned.ref()}, evaluate=options)
    facts = execute(evaluation, evaluate.run, store)["facts"]
    overall = facts["parts"]["all"]["accuracy"]["policy"]
    assert overall["low"] <= overall["value"] <= overall["high"]
    assert facts["lift"]["twins"]["erm"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": overall["n"]}, "a policy against itself"
    assert {rule["name"] for rule in facts["gate"]["rules"]} == {"accuracy", "lift", "golden_drop", "kl"}
    pairs = pq.read_table(store.fetch("evaluate", evaluation.digest()) / "evaluation.parquet")
    hits = pairs.group_by("prompt_hash").aggregate([("margin_policy", "mean")]).num_rows
    assert hits == overall["n"]


def test_evaluate_writes_one_row_per_held_out_response(pipeline_start: Start, store: Store) -> None:
    """The start against itself: its KL and implicit rewards are 0 whatever is sampled."""
    rate = {"value": 0.42, "low": 0.36, "high": 0.48, "n": 24}
    against = {"start": wins(0.42) | {"win_rate": rate}, "champion": wins(0.46) | {"win_rate": rate | {"value": 0.46}}}
    comparison = finished(store, "compare", "one", {}, facts={"judge": "gold", "wins": against})
    spec = evaluate_spec(pipeline_start, policy=pipeline_start[2], comparison=comparison)
    result = execute(spec, evaluate.run, store)
    table = output(store, spec, "responses.parquet")
    assert table.schema.names == ["record_id", "response_index", "implicit", "logp_per_token", "tokens"]
    records = records_of(store, pipeline_start[1], "eval")
    assert list(zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)) == [
        (record["record_id"], i) for record in records for i in range(len(record["responses"]))
    ]
    assert np.abs(table["implicit"].to_numpy()).max() < 1e-3
    assert result["facts"]["kl"]["value"] == pytest.approx(0.0, abs=1e-3)
    _, _, _, reference = pipeline_start
    logps = pq.read_table(store.fetch(reference.stage, reference.digest) / "logps.parquet").to_pylist()
    per_token = {(r["record_id"], r["response_index"]): r["logp"] / r["tokens"] for r in logps}
    for row in table.to_pylist():
        assert row["logp_per_token"] == pytest.approx(per_token[row["record_id"], row["response_index"]], abs=1e-4)

    facts = result["facts"]
    rules = {rule["name"]: rule for rule in facts["gate"]["rules"]}
    assert (rules["win_rate"]["passed"], rules["win_rate"]["value"], rules["win_rate"]["uncertain"]) == (False, 0.36, False)
    assert (rules["champion_win_rate"]["passed"], rules["champion_win_rate"]["uncertain"]) == (False, True), "0.45 lies in [0.36, 0.48]"
    assert facts["reward_calibration"]["beta"] == 1.0, "a supervised policy has no loss with a β"
    assert facts["reward_calibration"]["confidence"] == pytest.approx([0.5], abs=1e-3)
    assert facts["by_task"] == {}
    assert all(source["accuracy"]["n"] >= 1 for source in facts["by_source"].values())
    frame = table.to_pandas()
    frame["reward"] = [reward for record in records for reward in record["rewards"]]
    rho = [f["logp_per_token"].rank().corr(f["reward"].rank()) for _, f in frame.groupby("record_id")]
    assert facts["reward_correlation"]["likelihood"]["value"] == pytest.approx(np.nanmean(rho))
    assert facts["reward_correlation"]["likelihood"] == pytest.approx(facts["reward_correlation"]["likelihood_start"], abs=0.2)


def test_carried_columns_are_groups(pipeline_start: Start, store: Store) -> None:
    """Three of four records name an annotator; the measures of a group are those of its pairs in the written table."""
    _, given, first, reference = pipeline_start
    table = pq.read_table(store.fetch(given.stage, given.digest) / "records.parquet")
    names = [f'{{"annotator":{annotator}}}' for annotator in ('"ann"', '"bob/é"', '"bob/è"', "null")]
    extra = pa.array([names[i % 4] for i in range(len(table))])
    table = table.set_column(table.column_names.index("extra"), "extra", extra)
    records = finished(store, "ingest", "annotated", {"records.parquet": table})
    options = EvaluateConfig(kl_prompts=0, groups=["annotator"])
    spec = evaluate_spec((Path(), records, first, reference), policy=first, evaluate=options)
    result = execute(spec, evaluate.run, store)
    facts = evaluate.Facts.model_validate(result["facts"])
    pairs = output(store, spec, "evaluation.parquet")
    held_out = table.filter(pa.compute.equal(table["split"], "eval"))["extra"].to_pylist()
    margins: dict[str, list[float]] = {name: [] for name in names}
    for record, margin in zip(pairs["record"].to_pylist(), pairs["margin_policy"].to_pylist(), strict=True):
        margins[held_out[record]].append(margin)
    found = facts.by_column["annotator"]
    of_name = dict(zip(("ann", "bob/é", "bob/è"), (margins[name] for name in names), strict=False))
    assert {name: group.n for name, group in found.groups.items()} == {name: len(values) for name, values in of_name.items()}
    for name, values in of_name.items():
        share = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in values) / len(values)
        assert found.groups[name].accuracy_policy == pytest.approx(share)
    assert found.without == len(margins[names[3]]) > 0 and found.merged == 0
    shown = {name for name in result["metrics"] if name.startswith("by/")}
    assert shown == {"by/annotator/ann", "by/annotator/bob/é", "by/annotator/bob/è"}, "each its own"


@pytest.mark.component
def test_two_actors_write_the_bytes_that_one_process_writes(
    pipeline_start: Start, store: Store, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "KL_SHARD", 6)  # several shards, each on whichever actor is free
    policy = other_start(pipeline_start)
    execute(policy, sft.run, store)
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    other, results = Store(str(tmp_path / "other")), []
    for place, execution in ((store, IN_PROCESS), (other, Execution(workers=2))):
        results.append(execute(evaluate_spec(pipeline_start, policy.ref(), execution), evaluate.run, place))
    spec = evaluate_spec(pipeline_start, policy.ref())
    one, two = (place.fetch(spec.stage, spec.digest()) / "responses.parquet" for place in (store, other))
    assert sha256_file(one) == sha256_file(two)
    assert results[0]["facts"]["kl"] == results[1]["facts"]["kl"]
    assert results[0]["facts"]["kl"]["value"] > 0.01, "two different policies"


def other_start(start: Start) -> sft.Spec:
    """Another policy than the start, trained half as long."""
    optimization = OptimizationConfig(epochs=1, batch_size=16, learning_rate=3e-3)
    return sft.Spec(
        records=start[1],
        model=TINY,
        text=TEXT,
        sft=SftConfig(optimization=optimization),
        golden_sources=GOLDEN,
        execution=IN_PROCESS,
    )


def test_a_policy_whose_layers_are_streamed_is_not_sampled(pipeline_start: Start) -> None:
    sampled = EvaluateConfig(kl_prompts=4)
    spec = evaluate_spec(pipeline_start, pipeline_start[2], IN_PROCESS.evolve(stream_layers=True), evaluate=sampled)
    with pytest.raises(ConfigError, match=r"set evaluate\.kl_prompts: 0"):
        evaluate.run(spec, None)  # type: ignore[arg-type]  # refused before anything is fetched


def test_preferences_of_equal_tokens_are_left_out() -> None:
    """Of three pairs, the first has equal keys and other texts (cut), the second equal keys and equal texts (two draws)."""
    pairs = Pairs(np.arange(3), np.array([0, 2, 4]), np.array([1, 3, 5]), np.ones(3))
    kept, equal = evaluate.distinct_pairs(pairs, np.array([7, 7, 8, 8, 9, 10]), ["a b", "a c", "d", "d", "e", "f"])
    assert (kept.record_P.tolist(), kept.winner_P.tolist(), kept.loser_P.tolist(), equal) == ([1, 2], [2, 4], [3, 5], 1)
    same, none = evaluate.distinct_pairs(pairs, np.arange(6), ["a"] * 6)
    assert same is pairs and none == 0
    assert evaluate.left_out(0) == {} and evaluate.left_out(2)["equal_pairs"] == 2
