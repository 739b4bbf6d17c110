"""Stage ``generate`` with a served model: a real server on loopback, and the stage's own process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dora_core.config.execution import Endpoint, Execution
from dora_core.config.method import GenerateConfig, ModelConfig, TextConfig
from dora_core.data.records import RECORDS_SCHEMA
from infra.store.store import ERROR, Store
from tasks.runtime.stage import StageRef, execute, write_spec
from tasks.stages import generate
from tests.endpoint_server import MODEL, EndpointServer, Reply
from tests.tasks.handmade import finished

PROMPTS = 12


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def records_in(store: Store) -> StageRef:
    """A finished ``ingest`` stage with :data:`PROMPTS` held-out prompts, of a user's words after a system's."""
    rows = [
        {
            "record_id": f"r{i}",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {i}"}],
            "responses": ["a", "b"],
            "rewards": [1.0, 0.0],
            "sources": ["human", "human"],
            "reward_kind": "preference",
            "split": "eval",
            "prompt_hash": 1000 + i,
            "schema_version": 1,
        }
        for i in range(PROMPTS)
    ]
    return finished(store, "ingest", "some prompts", {"records.parquet": pa.Table.from_pylist(rows, RECORDS_SCHEMA)})


def generate_spec(records: StageRef, url: str, samples: int = 2, model: str = MODEL, **settings: Any) -> generate.Spec:
    return generate.Spec(
        records=records,
        policy=None,
        model=ModelConfig(),
        text=TextConfig(),
        generate=GenerateConfig(samples=samples, max_new_tokens=9, top_p=0.5, seed=3, served_model=model),
        execution=Execution(endpoint=Endpoint(url=url, **settings)),
    )


def by_seed(body: dict[str, Any]) -> Reply:
    return Reply(f"{body['messages'][-1]['content']} with {body['seed']}", tokens=4)


def samples_of(store: Store, spec: generate.Spec) -> list[dict[str, Any]]:
    return pq.read_table(store.fetch("generate", spec.digest()) / "samples.parquet").to_pylist()


def test_a_served_model_responds_in_place_of_the_policy(store: Store) -> None:
    records = records_in(store)
    with EndpointServer(by_seed) as server:
        spec = generate_spec(records, server.url)
        result = execute(spec, generate.run, store)
        bodies = server.bodies
    rows = samples_of(store, spec)
    assert [(r["record_id"], r["sample"]) for r in rows] == [(f"r{i}", s) for i in range(PROMPTS) for s in range(2)]
    assert all(r["response"].startswith(f"question {r['record_id'][1:]} with ") and r["tokens"] == 4 and r["finished"] for r in rows)
    assert len({r["response"] for r in rows}) == len({body["seed"] for body in bodies}) == 2 * PROMPTS
    asked = {
        "model": MODEL,
        "temperature": 1.0,
        "top_p": 0.5,
        "max_tokens": 9,
        "messages": bodies[0]["messages"],
        "seed": bodies[0]["seed"],
    }
    assert bodies[0] == asked and [m["role"] for m in asked["messages"]] == ["system", "user"]
    assert result["metrics"]["mean_tokens"] == 4 and result["facts"]["requests"] == 2 * PROMPTS

    with EndpointServer(lambda body: Reply(by_seed(body).text, finish_reason="length")) as server:  # elsewhere, and counts no tokens
        elsewhere = Store(str(store.local_root.parent / "elsewhere"))
        again = execute(generate_spec(records_in(elsewhere), server.url, concurrency=1), generate.run, elsewhere)
    assert [r["response"] for r in samples_of(elsewhere, spec)] == [r["response"] for r in rows], "the same seeds were sent"
    assert all(r["tokens"] is None and not r["finished"] for r in samples_of(elsewhere, spec))
    assert "mean_tokens" not in again["metrics"] and again["digest"] == result["digest"]


def test_server_and_model_are_named_together(store: Store) -> None:
    records, url = records_in(store), "http://127.0.0.1:1/v1"
    spec = generate_spec(records, url)
    with pytest.raises(ValidationError, match=r"served_model=served asks a server: give its address in execution\.endpoint\.url"):
        generate.Spec.model_validate(spec.model_dump() | {"execution": {}})
    with pytest.raises(ValidationError, match=r"served_model=null asks no server: leave out execution\.endpoint\.url"):
        generate.Spec.model_validate(spec.model_dump() | {"generate": {}})
    with pytest.raises(ValidationError, match="leave one out"):
        generate.Spec.model_validate(spec.model_dump() | {"policy": {"stage": "sft", "digest": "e" * 64}})
    assert generate_spec(records, "http://other/v1").digest() == spec.digest() != generate_spec(records, url, model="other").digest()


@pytest.mark.component
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_stage_asks_only_for_the_rest(store: Store, number: signal.Signals) -> None:
    """The stage's own process, ended while two requests are under way that no server answers."""
    held, stuck = threading.Event(), threading.Semaphore(0)

    def half(body: dict[str, Any]) -> Reply:
        if int(body["messages"][-1]["content"].split()[1]) >= PROMPTS // 2:
            stuck.release()
            held.wait(60)
        return by_seed(body)

    with EndpointServer(half) as server:
        spec = generate_spec(records_in(store), server.url, samples=1, concurrency=2)
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.stages", "generate", "--spec", write_spec(spec, store)],
            cwd=Path(generate.__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2):
            assert stuck.acquire(timeout=60)
        log = store.local_root / "generate" / spec.digest() / "scratch" / "answers"
        while sum(path.read_bytes().count(b"\n") for path in log.glob("*")) < PROMPTS // 2:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=60) == (143 if number == signal.SIGTERM else -number)
        held.set()
        before = len(server.bodies)
        result = execute(spec, generate.run, store)
        assert sorted(body["messages"][-1]["content"] for body in server.bodies[before:]) == sorted(
            f"question {i}" for i in range(PROMPTS // 2, PROMPTS)
        )
    assert result["facts"]["reused"] == PROMPTS // 2
    assert [r["record_id"] for r in samples_of(store, spec)] == [f"r{i}" for i in range(PROMPTS)]
    assert not (store.local_root / "generate" / spec.digest() / ERROR).exists()
