"""`dora generate` on files: real models, one process; then `dora judge` and `dora evaluate` on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dora_core.config.method import EvaluateConfig
from dora_core.testbed.mixture import Testbed
from flows.cli.files.comparison import compare_files
from flows.cli.files.tables import read_rows
from tests.flows.cli.files.commands import GENERATE, MIXTURE, finished_at, run


def test_generate_judge_evaluate_and_again_from_the_store(home: Path) -> None:
    def everything() -> list[dict[str, Any]]:
        done = [
            run("generate", "prompts.jsonl", "-o", f"s{i}.{kind}", "-m", f"m{i}", *GENERATE) for i, kind in enumerate(("parquet", "jsonl"))
        ]
        gold = ["--judge", "gold", "--set", "judge.testbed.prompts=8"]
        done += [run("judge", f"s{i}.{kind}", "-o", f"j{i}.{kind}", *gold) for i, kind in enumerate(("parquet", "jsonl"))]
        return done

    first = everything()
    before, files = finished_at(home), {name: Path(name).read_bytes() for name in ("s0.parquet", "s1.jsonl", "j0.parquet", "j1.jsonl")}
    assert len(before) == 2 + 1 + 2 + 2, "prompts once, responses twice, samples twice, scores twice"
    assert everything() == first
    assert finished_at(home) == before
    assert {name: Path(name).read_bytes() for name in files} == files

    testbed, prompts = Testbed(MIXTURE), [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    for name in ("j0.parquet", "j1.jsonl"):
        rows = read_rows(name).to_pylist()
        assert [(r["record_id"], r["prompt"], r["task"], r["sample"]) for r in rows] == [
            (p["id"], p["prompt"], p["task"], s) for p in prompts for s in range(3)
        ]
        assert [r["score"] for r in rows] == [testbed.gold_reward(r["prompt"], r["response"]) for r in rows]
        assert list(rows[0]) == ["prompt", "record_id", "sample", "response", "tokens", "finished", "task", "score", "judge"]
        assert all(r["tokens"] == 12 or r["finished"] for r in rows)

    facts = compare_files(Path("j0.parquet"), Path("j1.jsonl"), EvaluateConfig())
    found = facts.wins["j1.jsonl"]
    assert found.records == 8
    assert found.length.unit == "tokens"
    assert found.by_task.keys() == {p["task"] for p in prompts}
    assert facts.judge == read_rows("j0.parquet")["judge"][0].as_py()
