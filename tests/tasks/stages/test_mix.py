"""From samples and scores written by hand to the records of a round, and back to where each response came from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.rounds import MixConfig
from dora_core.data.records import GOLDEN_SCHEMA, RECORDS_SCHEMA
from dora_core.errors import DataError
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, execute
from tasks.stages import mix
from tests.tasks.handmade import finished

RECORDS = 40
SAMPLES = 3
POLICIES = [StageRef(stage="align", digest=f"{k}" * 64) for k in "ab"]


def given(store: Store, repeated_prompt: bool = False) -> StageRef:
    """40 records, every fourth for evaluation; every fifth train record has a human response."""
    rows = []
    for i in range(RECORDS):
        sources = ["human" if i % 5 == 0 else "a-lm", "a-lm"]
        key = 4 if repeated_prompt and i == 6 else i
        row = {"record_id": f"q{i}", "prompt": [{"role": "user", "content": f"question {key}"}], "responses": [f"y{i}.0", f"y{i}.1"]}
        row |= {"rewards": [1.0, None], "sources": sources, "reward_kind": "reward", "split": "eval" if i % 4 == 3 else "train"}
        rows.append(row | {"prompt_hash": 1000 + key, "schema_version": 1})
    files = {"records.parquet": pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), "golden.parquet": GOLDEN_SCHEMA.empty_table()}
    return finished(store, "ingest", f"given {repeated_prompt}", files)


def sampled(
    store: Store, name: str, responses: dict[int, list[str]], scores: dict[int, list[float | None]], keys: dict[int, int]
) -> tuple[StageRef, StageRef]:
    """Samples and scores of the train records; those not named get three different ones with scores 0, 1, 2."""
    places = [i for i in range(RECORDS) if i % 4 != 3]
    rows = [
        {"record_id": f"q{i}", "prompt_hash": 1000 + keys.get(i, i), "sample": k, "response": response}
        for i in places
        for k, response in enumerate(responses.get(i, [f"{name} {i}.{k}" for k in range(SAMPLES)]))
    ]
    columns = pa.schema([("record_id", pa.string()), ("prompt_hash", pa.uint64()), ("sample", pa.int32()), ("response", pa.string())])
    values = [score for i in places for score in scores.get(i, [0.0, 1.0, 2.0])]
    judged = pa.table({"record_id": [r["record_id"] for r in rows], "score": pa.array(values, pa.float64())})
    spec = {"generate": {"samples": SAMPLES, "served_model": None}}
    samples = finished(store, "generate", name, {"samples.parquet": pa.Table.from_pylist(rows, schema=columns)}, spec)
    return samples, finished(store, "judge", name, {"scores.parquet": judged})


def mixed(store: Store, config: MixConfig, rounds: int = 1, **answers) -> tuple[mix.Spec, list[dict], list[dict], dict]:
    drawn = [
        sampled(store, f"round {k}", answers.get("responses", {}), answers.get("scores", {}), answers.get("keys", {}))
        for k in range(1, rounds + 1)
    ]
    spec = mix.Spec(
        records=answers.get("records") or given(store),
        samples=[samples for samples, _ in drawn],
        scores=[scores for _, scores in drawn],
        policies=POLICIES[:rounds],
        round=rounds,
        mix=config,
        golden_sources=["human"],
    )
    result = execute(spec, mix.run, store)
    folder = store.fetch("mix", spec.digest())
    records = pq.read_table(folder / "records.parquet")
    assert records.schema == RECORDS_SCHEMA
    return spec, records.to_pylist(), pq.read_table(folder / "lineage.parquet").to_pylist(), result


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_lists_are_best_first_and_come_with_their_origin(store: Store) -> None:
    spec, records, lineage, result = mixed(store, MixConfig(given_fraction=0.0), scores={5: [0.5, None, 3.0]})
    assert {r["split"] for r in records} == {"train"} and len(records) == 30
    one = next(r for r in records if r["record_id"] == "r1-q4")
    assert (one["responses"], one["rewards"]) == (["round 1 4.2", "round 1 4.1", "round 1 4.0"], [2.0, 1.0, 0.0])
    assert one["sources"] == ["policy-r1"] * 3 and one["prompt"] == [{"role": "user", "content": "question 4"}]
    unscored = next(r for r in records if r["record_id"] == "r1-q5")
    assert (unscored["responses"], unscored["rewards"]) == (["round 1 5.2", "round 1 5.0"], [3.0, 0.5])
    origins = {(row["record_id"], row["response_index"]): row for row in lineage}
    assert len(origins) == sum(len(r["responses"]) for r in records)
    assert origins["r1-q5", 1] == {
        "record_id": "r1-q5",
        "response_index": 1,
        "round": 1,
        "policy": POLICIES[0].digest,
        "samples": spec.samples[0].digest,
        "judge": spec.scores[0].digest,
        "prompt_hash": 1005,
        "sample": 0,
        "score": 0.5,
    }
    assert result["facts"]["golden_share"] == 0.0 and result["facts"]["sources"] == {"policy-r1": 89}


def test_what_makes_no_list_is_counted(store: Store) -> None:
    responses = {0: ["same", "same", "same"], 1: ["", "  ", "only one"]}
    scores = {2: [1.0, 1.0, 1.0], 4: [None, None, 1.0]}
    _, records, _, result = mixed(store, MixConfig(given_fraction=0.0), responses=responses, scores=scores)
    assert result["facts"]["no_list"] == {"fewer than two different scored responses": 3, "scores too close": 1}
    assert len(records) == 26 and not {"r1-q0", "r1-q1", "r1-q2", "r1-q4"} & {r["record_id"] for r in records}


@pytest.mark.parametrize(("lists", "expected"), [("top_bottom", [[2.0, 0.0]]), ("best_of_k", [[2.0, 0.0], [2.0, 1.0]])])
def test_pairs_begin_with_the_best(store: Store, lists: str, expected: list[list[float]]) -> None:
    _, records, _, _ = mixed(store, MixConfig(lists=lists, given_fraction=0.0))
    found = [r["rewards"] for r in records]
    assert sorted({tuple(r) for r in found}) == sorted(tuple(e) for e in expected)


def test_a_gap_that_is_too_small_is_no_preference(store: Store) -> None:
    scores = {0: [0.0, 0.2, 0.5]}
    _, records, _, result = mixed(store, MixConfig(given_fraction=0.0, min_score_gap=0.5), scores=scores)
    assert result["facts"]["no_list"] == {"scores too close": 1} and len(records) == 29


@pytest.mark.parametrize(("fraction", "given_records", "lists"), [(0.25, 10, 30), (0.5, 30, 30), (0.75, 30, 10)])
def test_the_stated_share_of_given_records_holds(store: Store, fraction: float, given_records: int, lists: int) -> None:
    _, records, _, result = mixed(store, MixConfig(given_fraction=fraction))
    own = [r for r in records if not r["record_id"].startswith("r1-")]
    assert (len(own), len(records) - len(own)) == (given_records, lists) == (result["facts"]["given"], result["facts"]["lists"])


def test_golden_records_alone_may_stay(store: Store) -> None:
    """8 of 40 records have a human response, 6 of them train: with half and half there are as many lists."""
    _, records, _, result = mixed(store, MixConfig(given="golden"))
    own = [r for r in records if not r["record_id"].startswith("r1-")]
    assert len(own) == 6 == len(records) - len(own) and all("human" in r["sources"] for r in own)
    assert result["facts"]["golden_share"] == pytest.approx(6 / (6 * 2 + 6 * 3))


def test_another_seed_draws_others_and_the_same_seed_the_same_bytes(store: Store, tmp_path: Path) -> None:
    spec, first, _, _ = mixed(store, MixConfig(given_fraction=0.25))
    _, other, _, _ = mixed(store, MixConfig(given_fraction=0.25, seed=1))
    assert {r["record_id"] for r in first} != {r["record_id"] for r in other}
    elsewhere = Store(str(tmp_path / "elsewhere"))
    again, _, _, _ = mixed(elsewhere, MixConfig(given_fraction=0.25))
    for name in ("records.parquet", "lineage.parquet", "golden.parquet"):
        assert sha256_file(store.fetch("mix", spec.digest()) / name) == sha256_file(elsewhere.fetch("mix", again.digest()) / name)


def test_earlier_rounds_keep_their_names(store: Store) -> None:
    _, records, lineage, _ = mixed(store, MixConfig(given_fraction=0.0), rounds=2)
    assert {source for r in records for source in r["sources"]} == {"policy-r1", "policy-r2"} and len(records) == 60
    assert {(row["round"], row["policy"]) for row in lineage} == {(1, POLICIES[0].digest), (2, POLICIES[1].digest)}


def test_records_of_one_prompt_share_one_list(store: Store) -> None:
    _, rows, _, _ = mixed(store, MixConfig(given_fraction=0.0), records=given(store, repeated_prompt=True), keys={6: 4})
    assert {r["record_id"] for r in rows if r["prompt_hash"] == 1004} == {"r1-q4"} and len(rows) == 29


def test_nothing_left_says_why(store: Store) -> None:
    collapsed = {i: ["same"] * SAMPLES for i in range(RECORDS)}
    with pytest.raises(DataError, match=r"round 1 has nothing to learn from.*fewer than two different scored responses: 30"):
        mixed(store, MixConfig(), responses=collapsed)


def test_the_list_of_an_unpaired_records_prompt_is_not_unpaired() -> None:
    record = {"record_id": "q", "responses": ["y"], "rewards": [0.0], "sources": ["app"], "reward_kind": "label", "split": "train"}
    made = mix.to_record(record, mix.SampledList("q", 1, ["a", "b"], [2.0, 1.0], [0, 1]), 1, "policy-r1")
    assert (made["reward_kind"], made["responses"], made["rewards"]) == ("reward", ["a", "b"], [2.0, 1.0])


def test_verdicts_in_both_orders_become_the_probability_of_the_label(store: Store) -> None:
    """Prior ½. Best 2 against worst 0: both verdicts for 2 → 2.5/3; they differ → 1.5/3; one without a verdict → 1.5/2; a tie and a win
    → (1.5 + ½)/3; not compared → none. ``first`` is the smaller sample number in a vote."""
    votes = {
        0: [(0, 2, "second", "second")],
        1: [(0, 2, "second", "first")],
        2: [(0, 2, "second", None)],
        4: [(0, 1, "first", "first"), (0, 2, "tie", "second")],
        5: [(1, 2, "second", "second")],
    }
    columns = ("record_id", "first", "second", "verdict", "swapped_verdict")
    rows = [dict(zip(columns, (f"q{i}", *vote), strict=True)) for i, of_record in votes.items() for vote in of_record]
    samples, scores = sampled(store, "voted", {}, {}, {})
    folder = store.fetch("judge", scores.digest)
    files = {"scores.parquet": pq.read_table(folder / "scores.parquet"), "votes.parquet": pa.Table.from_pylist(rows)}
    records = given(store)
    spec = mix.Spec(
        records=records,
        samples=[samples],
        scores=[finished(store, "judge", "with votes", files)],
        policies=POLICIES[:1],
        round=1,
        mix=MixConfig(given_fraction=0.0, vote_prior=0.5),
        golden_sources=["human"],
    )
    execute(spec, mix.run, store)
    found = pq.read_table(store.fetch("mix", spec.digest()) / "records.parquet").to_pylist()
    probability = {row["record_id"]: row["label_probability"] for row in found}
    assert [probability[f"r1-q{i}"] for i in (0, 1, 2, 4)] == pytest.approx([2.5 / 3, 0.5, 0.75, 2 / 3])
    assert probability["r1-q5"] is None
    certain = spec.evolve(mix=MixConfig(given_fraction=0.0))
    execute(certain, mix.run, store)
    assert set(pq.read_table(store.fetch("mix", certain.digest()) / "records.parquet")["label_probability"].to_pylist()) == {None}
    assert "vote_prior" not in certain.mix.model_dump()
