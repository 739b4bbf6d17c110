"""`dora judge` on files: every kind of judge, with a real server on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dora_core.config.method import EvaluateConfig
from dora_core.errors import DataError
from flows.cli.files.comparison import compare_files
from flows.cli.files.tables import read_rows
from tests.endpoint_server import EndpointServer, Reply
from tests.flows.cli.files.commands import run, write


def test_preference_data_under_the_implicit_judge_is_a_row_per_response(home: Path) -> None:
    pair = ["--judge", "implicit", "--model", "m0", "--reference"]
    done = run("judge", "data.parquet", "-o", "same.parquet", *pair, "m0")
    data, rows = pq.read_table("data.parquet").to_pylist(), pq.read_table("same.parquet").to_pylist()
    assert [(r["prompt"], r["record_id"], r["response"]) for r in rows] == [(d["prompt"], d["id"], y) for d in data for y in d["responses"]]
    assert done["rows"] == 24
    assert {r["score"] for r in rows} == {0.0}, "a policy beside itself"
    run("judge", "data.parquet", "-o", "other.parquet", *pair, "m1")
    other = pq.read_table("other.parquet")
    assert len(set(other["score"].to_pylist())) == 24
    assert set(other["judge"].to_pylist()).isdisjoint({r["judge"] for r in rows})
    with pytest.raises(DataError, match="the scores come from different judges"):
        compare_files(Path("same.parquet"), Path("other.parquet"), EvaluateConfig())


def test_a_reward_model_scores_the_rows_of_a_file_where_they_are(home: Path) -> None:
    rows = [{"answer": f"word {i % 2}", "prompt": "abc"[i % 3], "score": "old", "extra": i} for i in range(6)]
    write(home / "r.jsonl", rows)
    command = ["judge", "r.jsonl", "--judge", "reward_model", "--model", "rm", "--column", "response=answer"]
    done = run(*command, "-o", "scored.jsonl")
    scored = read_rows("scored.jsonl").to_pylist()
    assert [row | {"score": "old"} for row in scored] == [row | {"judge": scored[0]["judge"]} for row in rows]
    assert scored[0]["judge"].startswith("reward_model ")
    assert len({row["score"] for row in scored}) == 6
    assert done["metrics"]["mean_score"] == pytest.approx(sum(row["score"] for row in scored) / 6)
    write(home / "swapped.jsonl", rows[::-1])
    run(command[0], "swapped.jsonl", *command[2:], "-o", "back.jsonl")
    assert [row["score"] for row in read_rows("back.jsonl").to_pylist()] == pytest.approx([row["score"] for row in scored[::-1]])


def test_a_server_responds_and_another_judges_against_a_file(home: Path) -> None:
    def prefers_ours(body: dict[str, Any]) -> str:
        """A verdict, by the texts themselves."""
        text = body["messages"][-1]["content"]
        return "A" if text.find("ours") < text.find("theirs") else "B"

    with EndpointServer(lambda body: Reply(f"ours {body['seed']}", tokens=2)) as server:
        asked = ["--endpoint", server.url, "--served-model", "served"]
        run("generate", "prompts.jsonl", "-o", "ours.parquet", "-n", "2", *asked)
        run("generate", "prompts.jsonl", "-o", "again.parquet", "-n", "2", *asked)
        assert len(server.bodies) == 16, "nothing is asked twice"
    rows = pq.read_table("ours.parquet").to_pylist()
    assert len({r["response"] for r in rows}) == 16
    assert {(r["tokens"], r["finished"]) for r in rows} == {(2, True)}
    write(home / "theirs.jsonl", [{"prompt": r["prompt"], "response": "theirs"} for r in rows[::2]])
    with EndpointServer(prefers_ours) as server:
        judged = ["--judge", "llm", "--model", "served", "--endpoint", server.url]
        run("judge", "ours.parquet", "-o", "scored.parquet", *judged, "--against", "theirs.jsonl")
        run("judge", "theirs.jsonl", "-o", "baseline.jsonl", *judged, "--against", "theirs.jsonl")
        run("judge", "ours.parquet", "-o", "each.parquet", *judged)
    assert set(pq.read_table("scored.parquet")["score"].to_pylist()) == {1.0}
    assert {row["score"] for row in read_rows("baseline.jsonl").to_pylist()} == {0.5}, "equal texts are ties"
    facts = compare_files(Path("scored.parquet"), Path("baseline.jsonl"), EvaluateConfig())
    assert facts.wins["baseline.jsonl"].win.value == 1.0
    with pytest.raises(DataError, match="responses of one file with each other"):
        compare_files(Path("each.parquet"), Path("each.parquet"), EvaluateConfig())
