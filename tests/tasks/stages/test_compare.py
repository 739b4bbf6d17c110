"""Stage compare on small tables written by hand: every figure follows from arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.method import EvaluateConfig
from dora_core.data.record_counts import UNKNOWN
from dora_core.data.records import RECORDS_SCHEMA
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages.compare import SEVERAL, Spec, best_responses, run, source_of
from tests.tasks.handmade import finished

EVALUATE = EvaluateConfig(bootstrap_samples=200, min_group=2)
REWARD_MODEL = {"judge": {"kind": "reward_model"}, "model": {"stage": "reward", "digest": "a" * 64}, "reference": None, "text": {}}
LLM = {"judge": {"kind": "llm", "against": "each_other"}, "model": None, "reference": None, "text": {}}

# id, prompt, task, sources, rewards of two responses ("aaaa", "bb")
RECORDS = [
    ("r0", 10, "math", ["human", "m"], [1.0, 0.0]),  # best: human
    ("r1", 10, "math", ["human", "m"], [0.0, 1.0]),  # the same prompt; best: m
    ("r2", 12, "code", ["m", "m"], [1.0, 1.0]),  # two best ones of one source
    ("r3", 13, "code", ["human", "m"], [None, None]),  # nothing measured, several sources
    ("r4", 14, None, [None, None], [2.0, None]),  # unknown source, no task
    ("r5", 15, None, ["human", "m"], [1.0, 0.0]),  # not sampled
]


def samples(responses: dict[str, list[tuple[str, int | None]]]) -> pa.Table:
    """record → (text, tokens) of each sample."""
    rows = [(record, i, text, tokens) for record, texts in responses.items() for i, (text, tokens) in enumerate(texts)]
    record, sample, text, tokens = zip(*rows, strict=True)
    return pa.table({"record_id": record, "sample": pa.array(sample, pa.int32()), "response": text, "tokens": pa.array(tokens, pa.int32())})


def scores(values: dict[str, list[float | None]]) -> pa.Table:
    rows = [(record, i, score) for record, row in values.items() for i, score in enumerate(row)]
    record, sample, score = zip(*rows, strict=True)
    return pa.table({"record_id": record, "sample": pa.array(sample, pa.int32()), "score": pa.array(score, pa.float64())})


class Made:
    """A store with the records above, and contestants added one by one."""

    def __init__(self, folder: Path, *more: dict[str, Any]):
        self.store = Store(str(folder))
        rows = [
            {"record_id": name, "responses": ["aaaa", "bb"], "rewards": rewards, "sources": sources, "task": task}
            | {"prompt": [{"role": "user", "content": "x"}], "reward_kind": "reward", "split": "eval"}
            | {"prompt_hash": prompt, "schema_version": 2}
            for name, prompt, task, sources, rewards in RECORDS
        ]
        rows += [rows[0] | row for row in more]
        rows.append(rows[0] | {"record_id": "train", "split": "train"})
        self.records = finished(self.store, "ingest", "data", {"records.parquet": pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA)})

    def contestant(
        self, name: str, judged: dict[str, list[float | None]], tokens: dict[str, list[int | None]] | None = None, judge=REWARD_MODEL
    ) -> tuple[StageRef, StageRef]:
        texts = {r: [("t" * 8, n) for n in (tokens or {}).get(r, [5] * len(row))] for r, row in judged.items()}
        written = finished(self.store, "generate", name, {"samples.parquet": samples(texts)})
        return written, finished(self.store, "judge", name, {"scores.parquet": scores(judged)}, judge)

    def compare(self, policy: tuple, start: tuple, **other: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        spec = Spec(
            records=self.records,
            samples=policy[0],
            scores=policy[1],
            start_samples=start[0],
            start_scores=start[1],
            evaluate=EVALUATE,
            golden_sources=["human"],
            **other,
        )
        result = execute(spec, run, self.store)
        return result, pq.read_table(self.store.fetch("compare", spec.digest()) / "comparison.parquet").to_pylist()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


POLICY = {"r0": [1.0, 3.0], "r1": [1.0, 3.0], "r2": [2.0, 2.0], "r3": [0.0, None], "r4": [0.0, 1.0]}
START = {"r0": [2.0], "r1": [0.0], "r2": [2.0], "r3": [1.0], "r4": [None]}


def test_shares_per_record_and_means_over_prompts(made: Made) -> None:
    """r0 wins one of two, r1 both, r2 ties both, r3 loses its only scored pair, r4 has no scored pair. Prompts: r0 and r1 share one."""
    result, rows = made.compare(made.contestant("policy", POLICY), made.contestant("start", START))
    shares = [(r["record_id"], r["win_start"], r["tie_start"], r["lose_start"], r["outcome_start"]) for r in rows]
    assert shares == [
        ("r0", 0.5, 0.0, 0.5, 0.5),
        ("r1", 1.0, 0.0, 0.0, 1.0),
        ("r2", 0.0, 1.0, 0.0, 0.5),
        ("r3", 0.0, 0.0, 1.0, 0.0),
        ("r4", None, None, None, None),
    ]
    wins = result["facts"]["wins"]["start"]
    means = {name: wins[name]["value"] for name in ("win", "tie", "lose", "win_rate")}
    assert means == pytest.approx({"win": 0.75 / 3, "tie": 1 / 3, "lose": 1.25 / 3, "win_rate": 1.25 / 3})
    assert wins["win_rate"]["n"] == 3 and wins["win_rate"]["low"] < 1.25 / 3 < wins["win_rate"]["high"]
    assert wins["sign_test_p"] == pytest.approx(1.0), "one prompt won, one lost, one tied"
    assert result["metrics"]["win_rate_start"] == wins["win_rate"]["value"]
    assert (result["rows"], result["facts"]["judge"]) == (5, "reward_model")


def test_what_is_left_out_is_counted(made: Made) -> None:
    result, _ = made.compare(made.contestant("policy", POLICY), made.contestant("start", START))
    wins = result["facts"]["wins"]["start"]
    assert (wins["records"], wins["records_left_out"], wins["pairs"], wins["pairs_without_score"]) == (4, 1, 10, 3)


def test_groups_by_the_source_of_the_best_response_and_by_task(made: Made) -> None:
    result, rows = made.compare(made.contestant("policy", POLICY), made.contestant("start", START))
    assert [(r["source"], r["task"]) for r in rows] == [
        ("human", "math"),
        ("m", "math"),
        ("m", "code"),
        (SEVERAL, "code"),
        (UNKNOWN, None),
    ]
    wins = result["facts"]["wins"]["start"]
    assert {name: group["win_rate"]["value"] for name, group in wins["by_source"].items()} == {"human": 0.5, "m": 0.75, SEVERAL: 0.0}
    assert {name: group["win_rate"]["value"] for name, group in wins["by_task"].items()} == {"math": 0.75, "code": 0.25}
    assert wins["worst_group"] is None, "only m and code have two prompts, each alone in its grouping"
    assert result["facts"]["golden"] == ["human"]


def test_the_worst_group_is_named(made: Made) -> None:
    judged = {"r0": [0.0], "r1": [0.0], "r2": [5.0], "r3": [0.0], "r4": [0.0], "r5": [0.0]}
    spread = {"r0": [0.0], "r1": [1.0], "r2": [0.0], "r3": [0.0], "r4": [0.0], "r5": [0.0]}
    result, _ = made.compare(made.contestant("policy", judged), made.contestant("start", spread))
    worst = result["facts"]["wins"]["start"]["worst_group"]
    assert (worst["by"], worst["name"], worst["value"], worst["n"]) == ("source", "human", 0.5, 2)


def test_the_chosen_response_is_the_single_best_measured_one(made: Made) -> None:
    """r0: the first, r1: the second, r4: the only measured one; r2 has two best ones and r3 none."""
    own = {"r0": [2.0, 9.0], "r1": [9.0, 0.0], "r2": [0.0, 0.0], "r3": [0.0, 0.0], "r4": [0.5, 9.0], "r5": [0.0, 0.0]}
    judged = finished(made.store, "judge", "own", {"scores.parquet": scores(own)}, REWARD_MODEL)
    result, rows = made.compare(made.contestant("policy", POLICY), made.contestant("start", START), chosen_scores=judged)
    assert [r["outcome_chosen"] for r in rows] == [0.5, 1.0, None, None, 0.5]
    wins = result["facts"]["wins"]["chosen"]
    assert (wins["records"], wins["records_left_out"]) == (3, 2)
    assert wins["length"] == {"unit": "characters", "policy": 8.0, "opponent": pytest.approx((4 + 2 + 4) / 3)}
    assert [r["length_chosen"] for r in rows] == [4.0, 2.0, None, None, 4.0]


def test_a_response_with_the_label_undesirable_is_not_a_chosen_one(tmp_path: Path) -> None:
    one = {"responses": ["cccccc"], "sources": ["m"], "reward_kind": "label"}
    made = Made(tmp_path, {"record_id": "up", "rewards": [1.0]} | one, {"record_id": "down", "rewards": [0.0]} | one)
    own = {name: [0.0, 0.0] for name, *_ in RECORDS} | {"up": [0.0], "down": [0.0]}
    judged = finished(made.store, "judge", "own", {"scores.parquet": scores(own)}, REWARD_MODEL)
    policy, start = {"up": [1.0], "down": [1.0]}, {"up": [0.0], "down": [0.0]}
    result, rows = made.compare(made.contestant("policy", policy), made.contestant("start", start), chosen_scores=judged)
    assert [(r["record_id"], r["outcome_chosen"], r["outcome_start"]) for r in rows] == [("up", 1.0, 1.0), ("down", None, 1.0)]
    assert result["facts"]["wins"]["start"]["by_source"].keys() == {"m"}, "both belong to the source of their response"


def test_lengths_are_tokens_where_all_are_counted_else_characters(made: Made) -> None:
    start = made.contestant("start", START)
    counted, _ = made.compare(made.contestant("policy", POLICY, {"r0": [3, 5]}), start)
    assert counted["facts"]["wins"]["start"]["length"] == {"unit": "tokens", "policy": 4.75, "opponent": 5.0}
    served, rows = made.compare(made.contestant("served", POLICY, {"r0": [None, 5]}), start)
    assert served["facts"]["wins"]["start"]["length"] == {"unit": "characters", "policy": 8.0, "opponent": 8.0}
    assert rows[0]["policy_length_start"] == 8.0


def test_equal_lengths_leave_the_length_controlled_rate_at_the_win_rate(made: Made) -> None:
    result, _ = made.compare(made.contestant("policy", POLICY), made.contestant("start", START))
    wins = result["facts"]["wins"]["start"]
    assert wins["length_controlled"]["value"] == pytest.approx(wins["win_rate"]["value"], abs=0.03), "three prompts feel the ridge"
    assert result["metrics"]["lc_win_rate_start"] == wins["length_controlled"]["value"]


def test_the_champion_is_an_opponent_like_the_start(made: Made) -> None:
    champion = made.contestant("champion", {r: [9.0] for r in ("r0", "r1", "r2")})
    policy, start = made.contestant("policy", POLICY), made.contestant("start", START)
    result, _ = made.compare(policy, start, champion_samples=champion[0], champion_scores=champion[1])
    wins = result["facts"]["wins"]["champion"]
    assert (wins["win_rate"]["value"], wins["records"], wins["records_left_out"]) == (0.0, 3, 2)
    with pytest.raises(ValueError, match="give both or neither"):
        made.compare(policy, start, champion_samples=champion[0])


def test_an_opponent_without_scores_is_a_warning_and_none_at_all_an_error(made: Made) -> None:
    policy, start = made.contestant("policy", POLICY), made.contestant("start", START)
    silent = made.contestant("silent", {r: [None] for r in START})
    result, rows = made.compare(policy, start, champion_samples=silent[0], champion_scores=silent[1])
    assert set(result["facts"]["wins"]) == {"start"}
    assert result["facts"]["warnings"] == ["champion: not one response of the policy has a score beside one of the opponent's"]
    assert all(r["outcome_champion"] is None for r in rows)
    with pytest.raises(DataError, match="the reward_model judge gave no pair of scores for the 5 held-out records"):
        made.compare(policy, silent)


def test_scores_that_do_not_compare_are_refused(made: Made) -> None:
    other = REWARD_MODEL | {"model": {"stage": "reward", "digest": "b" * 64}}
    with pytest.raises(DataError, match="different judges"):
        made.compare(made.contestant("policy", POLICY), made.contestant("start", START, judge=other))
    with pytest.raises(DataError, match="nothing in common") as caught:
        made.compare(made.contestant("l", POLICY, judge=LLM), made.contestant("m", START, judge=LLM))
    assert "against=given" in caught.value.hint


def test_best_responses_and_their_source() -> None:
    assert best_responses([1.0, None, 3.0]) == [2]
    assert best_responses([1.0, 1.0, 0.0]) == [0, 1]
    assert best_responses([None, None]) == [0, 1]
    assert source_of(["a", "b", "a"], [0, 2]) == "a"
    assert source_of([], []) == UNKNOWN


def test_a_twin_is_an_opponent_and_its_win_rate_against_the_start_is_subtracted(made: Made) -> None:
    """Prompt 10: the policy wins both records, the twin one of them: 1 − ½. Prompt 12: both lose. Record r3 has no sample of the twin.

    Mean over the two shared prompts: (½ + 0)/2 = ¼. Against the twin itself: prompt 10 ties r0 and wins r1, prompt 12 wins.
    """
    policy = made.contestant("policy", {"r0": [2.0], "r1": [2.0], "r2": [0.5], "r3": [2.0]})
    start = made.contestant("start", {"r0": [1.0], "r1": [1.0], "r2": [1.0], "r3": [1.0]})
    twin = made.contestant("twin", {"r0": [2.0], "r1": [0.0], "r2": [0.0]})
    result, rows = made.compare(policy, start, twin_samples={"erm": twin[0]}, twin_scores={"erm": twin[1]})
    facts = result["facts"]
    assert (facts["lifts"]["erm"]["value"], facts["lifts"]["erm"]["n"]) == (0.25, 2)
    assert facts["wins"]["erm"]["win_rate"]["value"] == pytest.approx((0.75 + 1.0) / 2)
    assert result["metrics"]["win_rate_over_erm"] == 0.25 and "outcome_erm" in rows[0]
    assert {"twin_samples.erm", "twin_scores.erm"} <= result["inputs"].keys()


def test_a_twin_takes_part_with_samples_and_scores(made: Made) -> None:
    policy, start = (made.contestant(name, {"r0": [1.0]}) for name in ("policy", "start"))
    with pytest.raises(ValueError, match="a twin takes part with its samples and their scores"):
        made.compare(policy, start, twin_samples={"erm": policy[0]})
