"""The LLM judge through a real server on loopback whose preferences are known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.execution import Endpoint, Execution
from dora_core.config.judging import LLMJudge
from dora_core.data.records import RECORDS_SCHEMA
from dora_core.data.response_turns import TURN, join_turns
from dora_core.errors import ConfigError, DataError
from infra.store.store import Store
from tasks.judges.llm import _Group
from tasks.runtime.stage import StageRef, execute
from tasks.stages import judge
from tests.endpoint_server import EndpointServer, Reply
from tests.tasks.handmade import finished

GIVEN = ["given", "given longer"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def stages(store: Store, samples: dict[str, list[str]]) -> tuple[StageRef, StageRef]:
    """A finished ``ingest`` stage whose records all have the responses :data:`GIVEN`, and a ``generate`` stage with ``samples``."""
    rows = [
        {
            "record_id": record,
            "prompt": [{"role": "user", "content": f"prompt of {record}"}],
            "responses": GIVEN,
            "rewards": [1.0, 0.0],
            "sources": ["human", "human"],
            "reward_kind": "preference",
            "split": "eval",
            "prompt_hash": 7 + number,
            "schema_version": 1,
        }
        for number, record in enumerate(samples)
    ]
    numbered = [
        {"record_id": record, "prompt_hash": 7 + number, "sample": sample, "response": text}
        for number, (record, texts) in enumerate(samples.items())
        for sample, text in enumerate(texts)
    ]
    schema = pa.schema([("record_id", pa.string()), ("prompt_hash", pa.uint64()), ("sample", pa.int32()), ("response", pa.string())])
    records = finished(store, "ingest", "given", {"records.parquet": pa.Table.from_pylist(rows, RECORDS_SCHEMA)})
    return records, finished(store, "generate", "samples", {"samples.parquet": pa.Table.from_pylist(numbered, schema)})


def spec(server: EndpointServer, records: StageRef, samples: StageRef | None, **settings: Any) -> judge.Spec:
    asked = LLMJudge(**({"model": "judge", "criteria": "Which is longer?"} | settings))
    return judge.Spec(
        records=records, samples=samples, judge=asked, execution=Execution(endpoint=Endpoint(url=server.url, give_up_seconds=20))
    )


def output(store: Store, of: judge.Spec, name: str) -> list[dict[str, Any]]:
    return pq.read_table(store.fetch("judge", of.digest()) / name).to_pylist()


def scores(store: Store, of: judge.Spec) -> list[float | None]:
    return [row["score"] for row in output(store, of, "scores.parquet")]


def quoted(body: dict[str, Any]) -> tuple[str, str]:
    """Responses A and B of a request."""
    a, b = re.findall(r"response ([AB]) begins ===\n(.*?)\n=== \w+ response \1 ends", body["messages"][1]["content"], re.DOTALL)
    return a[1], b[1]


def longer(body: dict[str, Any]) -> str:
    a, b = quoted(body)
    return "[[tie]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"


def test_scores_follow_a_judge_that_likes_length(store: Store) -> None:
    """r0: all six meetings, 1 > ¾ …; r1: two are as long as each other; r2: equal texts, for which no request is sent."""
    given = stages(store, {"r0": ["xx", "xxxx", "x", "xxx"], "r1": ["aa", "bb", "a"], "r2": ["same", "same"]})
    with EndpointServer(longer) as server:
        of = spec(server, *given)
        result = execute(of, judge.run, store)
        bodies = server.bodies
    assert scores(store, of) == [1 / 3, 1.0, 0.0, 2 / 3, 0.75, 0.75, 0.0, 0.5, 0.5]
    facts = result["facts"]
    assert (facts["comparisons"], facts["requests"], facts["unparsable"]) == (9, 18, 0)
    assert (facts["position_disagreement"], facts["tie_share"]) == (0.0, pytest.approx(1 / 9))
    votes = output(store, of, "votes.parquet")
    assert votes[0] == {"record_id": "r0", "first": 0, "second": 1, "verdict": "second", "swapped_verdict": "second"}
    assert {(v["record_id"], v["first"], v["second"]) for v in votes if v["verdict"] == "tie"} == {("r1", 0, 1)}
    assert {(b["model"], b["temperature"], b["max_tokens"], b["seed"]) for b in bodies} == {("judge", 0.0, 16, 0)}
    assert all("prompt of r" in b["messages"][1]["content"] and "Which is longer?" in b["messages"][1]["content"] for b in bodies)
    assert {tuple(sorted(quoted(b))) for b in bodies} >= {("x", "xx"), ("aa", "bb")} and ("same", "same") not in map(quoted, bodies)


def test_a_judge_that_always_prefers_what_stands_first_decides_nothing(store: Store) -> None:
    given = stages(store, {"r0": ["a", "b", "c"]})
    with EndpointServer(lambda _: "[[A]]") as server:
        of = spec(server, *given)
        facts = execute(of, judge.run, store)["facts"]
    assert scores(store, of) == [0.5, 0.5, 0.5]
    assert (facts["position_disagreement"], facts["tie_share"]) == (1.0, 1.0)
    assert {(v["verdict"], v["swapped_verdict"]) for v in output(store, of, "votes.parquet")} == {("first", "second")}


def test_scores_against_the_given_responses_compare_between_policies(store: Store) -> None:
    """ "given" has 5 letters and "given longer" 12: a sample's score is how many of them it exceeds, whatever else was sampled."""
    given = stages(store, {"r0": ["x" * 13], "r1": ["x" * 6, "given", "x"]})
    with EndpointServer(longer) as server:
        of = spec(server, *given, against="given")
        execute(of, judge.run, store)
        own = spec(server, given[0], None, against="given")
        execute(own, judge.run, store)
    assert scores(store, of) == [1.0, 0.5, 0.25, 0.0], "a tie with the own text, which is a given one"
    assert scores(store, own) == [0.25, 0.75] * 2
    assert ("r1", 1, 0) not in {(v["record_id"], v["first"], v["second"]) for v in output(store, of, "votes.parquet")}


def test_answers_without_a_verdict_are_counted_and_decide_nothing(store: Store) -> None:
    def shy(body: dict[str, Any]) -> str:
        return "I would rather not say." if "c" in quoted(body) else "[[A]]" if quoted(body)[0] == "a" else "[[B]]"

    given = stages(store, {"r0": ["a", "b", "c"]})
    with EndpointServer(shy) as server:
        of = spec(server, *given)
        result = execute(of, judge.run, store)
    assert scores(store, of) == [1.0, 0.0, None]
    assert (result["facts"]["unparsable"], result["facts"]["comparisons"], result["metrics"]["unscored"]) == (4, 3, 1)


def test_a_judge_that_never_gives_a_verdict_is_refused(store: Store) -> None:
    given = stages(store, {"r0": ["a", "b"]})
    refused = pytest.raises(DataError, match="none of the 2 answers of judge has a verdict; 2 of them were cut at 16 tokens")
    with EndpointServer(lambda _: Reply("<think>Let me see", finish_reason="length")) as server, refused as error:
        execute(spec(server, *given), judge.run, store)
    assert "judge.max_new_tokens" in error.value.hint


def test_a_single_sample_has_nobody_to_meet(store: Store) -> None:
    given = stages(store, {"r0": ["a"], "r1": ["b"]})
    with EndpointServer(longer) as server, pytest.raises(DataError, match="every prompt has one response") as error:
        execute(spec(server, *given), judge.run, store)
    assert "judge.against=given" in error.value.hint and server.bodies == []


def test_a_judge_that_fails_midway_is_asked_for_the_rest(store: Store) -> None:
    given = stages(store, {"r0": [*"abcd"]})
    with EndpointServer(lambda body: longer(body) if "d" not in quoted(body) else Reply("too long", 400)) as server:
        of = spec(server, *given)
        with pytest.raises(ConfigError, match=r"refuses record r0, responses \d and 3: 400 too long"):
            execute(of, judge.run, store)
    with EndpointServer(longer) as server:
        facts = execute(spec(server, *given), judge.run, store)["facts"]
        assert len(server.bodies) == facts["requests"] == 12 - facts["reused"]
    assert scores(store, of) == [0.5] * 4


def test_a_response_of_several_turns_is_judged_as_a_transcript() -> None:
    turns = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    group = _Group("r", [{"role": "user", "content": "q"}], [0], [0], [join_turns(turns)], ["no"], [(0, 0)])
    for question in group.questions(LLMJudge(model="judge")):
        asked = question.body["messages"][-1]["content"]
        assert "assistant\n\nUser: user\n\nAssistant: assistant" in asked and TURN not in asked
