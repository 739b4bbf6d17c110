import json
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from dora_core.errors import StoreError
from infra.store.store import Store
from infra.tracking.mlflow_client import MlflowCalls, as_batch, joined, mlflow_client
from infra.tracking.outbox import Artifact, Batch, Curves, Finish, Start
from tests.infra.tracking.refusing import refusing

PART = f"align/{'a' * 64}/journal/00-1-000000.jsonl"


def batch(run: str, **rows: int) -> Batch:
    row = {"metrics": ("m", 1.0, 1000, 0), "params": ("p", "x"), "tags": ("t", "x")}
    return Batch.model_validate({"run": run, "time": 0.0} | {kind: [row[kind]] * count for kind, count in rows.items()})


def curves(folder: Path, run: str, steps: int) -> Curves:
    """Write one part of a journal and return the operation that names it."""
    store = Store(str(folder / "store"))
    path = store.local(PART)
    path.parent.mkdir(parents=True)
    events = [{"kind": "metrics", "step": step, "values": {"loss(mean)": 0.5, "bad": float("inf")}, "time": 7.5} for step in range(steps)]
    progress = {"kind": "progress", "done": 1, "total": 2, "unit": "steps", "note": "", "time": 8.0}
    path.write_text("".join(json.dumps(event) + "\n" for event in [*events, progress]))
    return Curves(run=run, time=9.0, store=store.uri, part=PART)


def test_batches_are_joined_up_to_mlflows_limits_and_not_across_runs_or_other_operations() -> None:
    finish = Finish(run="a", time=0.0, status="FINISHED")
    assert joined([finish, finish]) == (finish, 1)
    assert joined([batch("a", metrics=1), finish, batch("a", metrics=1)])[1] == 1
    assert joined([batch("a", metrics=1), batch("a", tags=2), batch("b", metrics=1)])[1] == 2
    assert joined([batch("a", metrics=600), batch("a", metrics=400), batch("a", metrics=1)])[1] == 2
    assert joined([batch("a", metrics=950), batch("a", tags=60)])[1] == 1
    assert joined([batch("a", params=60), batch("a", params=41)])[1] == 1
    both, count = joined([batch("a", metrics=3), batch("a", tags=2)])
    assert isinstance(both, Batch)
    assert count == 2 and (len(both.metrics), len(both.tags), both.params) == (3, 2, [])


def test_the_metrics_of_a_journal_are_read_when_they_are_sent_and_joined_with_other_batches(tmp_path: Path) -> None:
    given = curves(tmp_path, "a", steps=3)
    assert as_batch(given).metrics == [("loss_x28_mean_x29_", 0.5, 7500, step) for step in range(3)]
    both, count = joined([given, batch("a", metrics=2, tags=1), batch("b", metrics=1)])
    assert isinstance(both, Batch) and count == 2 and (len(both.metrics), len(both.tags)) == (5, 1)
    assert joined([batch("a", metrics=998), given])[1] == 1, "1000 entries are MLflow's limit"


def test_a_journal_part_that_is_gone_is_given_up_and_a_store_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    given, calls = curves(tmp_path, "a", steps=1), MlflowCalls("http://127.0.0.1:9")
    Store(given.store).local(PART).write_text("{half a li")
    with pytest.raises(ValueError) as damaged:
        joined([given])
    Store(given.store).local(PART).unlink()
    with pytest.raises(FileNotFoundError) as gone:
        joined([given])
    assert joined([batch("a", metrics=1), given])[1] == 1, "what can be sent goes first"
    elsewhere = Curves(run="a", time=0.0, store=str(tmp_path / "not mounted"), part=PART)
    with pytest.raises(StoreError, match="is not there") as away:
        joined([elsewhere])
    assert [calls.is_refusal(given, raised.value) for raised in (damaged, gone, away)] == [True, True, False]
    assert not (tmp_path / "not mounted").exists()


def test_a_deleted_experiment_comes_back(mlflow_sqlite: str) -> None:
    client = mlflow_client(mlflow_sqlite)
    client.delete_experiment(client.create_experiment("demo"))
    start = Start(run="a", time=1.0, name="realign", parent=None, project="demo", artifact_root=None, user="ann")
    assert MlflowCalls(mlflow_sqlite).perform(start)
    assert client.get_experiment_by_name("demo").lifecycle_stage == "active"


@pytest.mark.parametrize(("status", "is_for_ever"), [(413, True), (401, False)])
def test_an_artifact_that_a_proxy_refuses_does_not_hold_up_the_rest(status: int, is_for_ever: bool, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(b"x")
    calls = MlflowCalls("http://127.0.0.1:9")
    calls._client = MlflowClient("http://127.0.0.1:9")
    with refusing(status) as uri, pytest.raises(requests.HTTPError) as raised:
        HttpArtifactRepository(f"{uri}/api/2.0/mlflow-artifacts/artifacts/run").log_artifact(str(tmp_path / "figure.png"))
    assert calls.is_refusal(Artifact(run="r", time=0.0, file="figure.png", folder="."), raised.value) is is_for_ever
