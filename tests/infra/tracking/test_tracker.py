import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from infra.back_ends import without_credentials
from infra.tracking.mlflow_client import MlflowCalls, joined, mlflow_client
from infra.tracking.mlflow_limits import clean_name, flatten, shorten
from infra.tracking.spool import Spool
from infra.tracking.tracker import Tracker


def record_a_realignment(tracker: Tracker, tmp_path: Path) -> tuple[str, str]:
    """Everything a flow does; returns the local ids of the parent and the stage run."""
    parent = tracker.start_run("realign", tags={"git": "abc"}, params={"align": {"loss": {"beta": 0.1}, "steps": None}, "long": "x" * 7000})
    stage = tracker.start_run("align", parent=parent, tags={"stage": "align"})
    tracker.log_input(stage, "records", "s3://user:secret@bucket/records", "d" * 64, "training")
    tracker.replay(
        stage,
        [{"kind": "metrics", "step": s, "values": {"loss(mean)": 1.0 / (s + 1)}, "time": 1000.5 + s} for s in range(1500)]
        + [{"kind": "progress", "done": 1, "total": 2, "unit": "steps", "note": "", "time": 5.0}],
    )
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    tracker.log_result(stage, {"rows": 7, "seconds": 1.5, "metrics": {"accuracy": 0.75, "bad": float("nan")}}, {"loss": figure})
    (tmp_path / "config.yaml").write_text("project: demo\n")
    tracker.log_files(parent, {"config.yaml": tmp_path / "config.yaml"})
    (tmp_path / "config.yaml").unlink()  # what was logged is a copy
    tracker.finish(stage, "FINISHED", tags={"attempt": "1"})
    tracker.finish(parent, "FAILED")
    return parent, stage


def check_the_realignment(uri: str, project: str, started: float) -> None:
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(project).experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"realign", "align"}
    parent, stage = runs["realign"], runs["align"]
    assert (parent.info.status, stage.info.status) == ("FAILED", "FINISHED")
    assert started <= stage.info.start_time / 1000 <= stage.info.end_time / 1000
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert stage.data.tags["stage"] == "align" and stage.data.tags["attempt"] == "1"
    assert parent.data.params["align.loss.beta"] == "0.1" and parent.data.params["align.steps"] == "null"
    assert len(parent.data.params["long"]) == 6000 and "7000 characters" in parent.data.params["long"]
    assert stage.data.metrics["accuracy"] == 0.75 and stage.data.metrics["rows"] == 7 and "bad" not in stage.data.metrics
    history = sorted(client.get_metric_history(stage.info.run_id, "loss_mean_"), key=lambda m: m.step)
    assert [m.step for m in history] == list(range(1500)) and history[3].value == 0.25 and history[3].timestamp == 1_003_500
    [given] = stage.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("records", "d" * 36) and given.tags[0].value == "training"
    assert json.loads(given.dataset.source) == {"uri": "s3://bucket/records", "digest": "d" * 64}
    assert [a.path for a in client.list_artifacts(stage.info.run_id, "figures")] == ["figures/loss.png"]
    assert Path(client.download_artifacts(stage.info.run_id, "figures/loss.png")).read_bytes().startswith(b"\x89PNG")
    assert Path(client.download_artifacts(parent.info.run_id, "config.yaml")).read_text() == "project: demo\n"


def test_a_realignment_in_sqlite_with_artifacts_under_the_given_root(mlflow_sqlite: str, tmp_path: Path) -> None:
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool", artifact_root=tmp_path / "mlartifacts")
    _, stage = record_a_realignment(tracker, tmp_path)
    assert tracker.close() == []
    check_the_realignment(mlflow_sqlite, "demo", started)
    assert list((tmp_path / "spool").iterdir()) == []
    mlflow_id = tracker.mlflow_id(stage)
    assert mlflow_id is not None and (tmp_path / "mlartifacts/demo" / mlflow_id / "artifacts/result.json").is_file()
    assert tracker.url(stage) is None  # no server, no page


def test_runs_left_open_end_as_killed_and_calls_after_close_change_nothing(mlflow_sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool")
    run = tracker.start_run("realign")
    assert tracker.close() == []
    tracker.finish(run, "FINISHED")
    assert tracker.close() == []
    assert mlflow_client(mlflow_sqlite).get_run(tracker.mlflow_id(run)).info.status == "KILLED"


def test_a_refused_update_is_reported_and_the_rest_arrives(mlflow_sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool")
    run = tracker.start_run("realign", params={"seed": 1})
    tracker._batch(run, params=[("seed", "2")])  # MLflow's params are immutable
    tracker.finish(run, "FINISHED", tags={"last": "yes"})
    [warning] = tracker.close()
    assert warning.startswith("MLflow refused batch:") and "seed" in warning
    stored = mlflow_client(mlflow_sqlite).get_run(tracker.mlflow_id(run))
    assert stored.info.status == "FINISHED" and stored.data.tags["last"] == "yes" and stored.data.params == {"seed": "1"}


@pytest.mark.fault(10)
def test_what_waited_goes_in_few_calls_and_a_refusal_costs_the_refused_alone(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty hours of training are tens of thousands of small batches: one call each would take longer than a run may end."""
    away = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "spool", history="ours")
    run = away.start_run("realign", tags={"first": "yes"}, params={"seed": 1})
    for step in range(2500):
        away.log_metrics(run, {"loss": 1.0 / (step + 1)}, step=step)
    away._batch(run, params=[("seed", "2")])  # MLflow's params are immutable
    away.log_metrics(run, {"late": 1.0})
    away.finish(run, "FINISHED")
    away.close(patience_seconds=0.1)

    client, sizes, log_batch = mlflow_client(mlflow_sqlite), [], MlflowClient.log_batch

    def counted(*arguments: object, metrics: list, **others: object) -> None:
        sizes.append(len(metrics))
        log_batch(*arguments, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    back = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool", history="ours")
    [warning] = back.close()
    assert warning.startswith("MLflow refused batch:") and "seed" in warning
    assert sum(size == 998 for size in sizes) >= 1 and max(sizes) <= 1000, "with a tag and a parameter; 1000 entries are MLflow's limit"
    stored = client.get_run(back.mlflow_id(run))
    assert stored.info.status == "FINISHED" and stored.data.params == {"seed": "1"} and stored.data.metrics["late"] == 1.0
    assert [m.step for m in sorted(client.get_metric_history(stored.info.run_id, "loss"), key=lambda m: m.step)] == list(range(2500))


def test_batches_are_joined_up_to_mlflows_limits_and_not_across_runs_or_other_operations() -> None:
    def batch(run: str, **rows: int) -> dict:
        return {"kind": "batch", "run": run, "time": 0.0} | {kind: [(kind, "x")] * count for kind, count in rows.items()}

    finish = {"kind": "finish", "run": "a", "time": 0.0}
    assert joined([finish, finish]) == (finish, 1)
    assert joined([batch("a", metrics=1), finish, batch("a", metrics=1)])[1] == 1
    assert joined([batch("a", metrics=1), batch("a", tags=2), batch("b", metrics=1)])[1] == 2
    assert joined([batch("a", metrics=600), batch("a", metrics=400), batch("a", metrics=1)])[1] == 2
    assert joined([batch("a", metrics=950), batch("a", tags=60)])[1] == 1
    assert joined([batch("a", params=60), batch("a", params=41)])[1] == 1
    both, count = joined([batch("a", metrics=3), batch("a", tags=2)])
    assert count == 2 and (len(both["metrics"]), len(both["tags"]), both["params"]) == (3, 2, [])


def test_a_deleted_experiment_comes_back(mlflow_sqlite: str, tmp_path: Path) -> None:
    client = mlflow_client(mlflow_sqlite)
    client.delete_experiment(client.create_experiment("demo"))
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool")
    tracker.start_run("realign")
    assert tracker.close() == []
    assert client.get_experiment_by_name("demo").lifecycle_stage == "active"


@pytest.mark.fault(10)
def test_a_repeated_delivery_changes_nothing(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A process may die between MLflow's answer and our acknowledgement."""
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool", artifact_root=tmp_path / "mlartifacts")
    record_a_realignment(tracker, tmp_path)
    lines = tracker._spool.path.read_text().splitlines(keepends=True)
    log = "".join(line for line in lines if "op" in json.loads(line))
    name, kept = tracker._spool.path, tracker._spool.files
    copies = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*.*")}
    assert tracker.close() == []
    for path, content in copies.items():
        (kept / path).parent.mkdir(parents=True)
        (kept / path).write_bytes(content)
    name.write_text(log)  # as if nothing had been acknowledged
    assert Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool", artifact_root=tmp_path / "mlartifacts").close() == []
    check_the_realignment(mlflow_sqlite, "demo", started)
    assert not name.exists()


def _start_and_die(uri: str, spool: Path) -> None:
    tracker = Tracker.open(uri, "demo", spool)
    assert tracker.mlflow_id(tracker.start_run("realign"), wait_seconds=60)
    os._exit(9)


@pytest.mark.fault(7)
@pytest.mark.component
def test_the_run_of_a_killed_process_is_closed_by_the_next_tracker(mlflow_sqlite: str, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_start_and_die, args=(mlflow_sqlite, tmp_path / "spool"))
    process.start()
    process.join()
    client = mlflow_client(mlflow_sqlite)
    experiment = client.get_experiment_by_name("demo").experiment_id
    assert [r.info.status for r in client.search_runs([experiment])] == ["RUNNING"]
    assert Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool").close() == []
    [run] = client.search_runs([experiment])
    assert run.info.status == "KILLED" and run.data.tags["dora.error"] == "its process is gone"


@pytest.mark.fault(7, 10)
@pytest.mark.component
def test_the_run_of_a_killed_process_is_closed_although_mlflow_was_away_for_the_next_tracker(mlflow_sqlite: str, tmp_path: Path) -> None:
    """The tracker that says so finds all of the killed one's updates sent; the id that its own need is known to that spool alone."""
    process = multiprocessing.get_context("spawn").Process(target=_start_and_die, args=(mlflow_sqlite, tmp_path / "spool"))
    process.start()
    process.join()
    [warning] = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "spool", history=mlflow_sqlite).close(patience_seconds=0.1)
    assert warning.startswith("2 MLflow updates for http://127.0.0.1:9 wait")
    assert Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool").close() == []
    client = mlflow_client(mlflow_sqlite)
    [run] = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.info.status == "KILLED" and run.data.tags["dora.error"] == "its process is gone"
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.component
def test_the_first_use_of_a_new_sqlite_file_is_quiet(tmp_path: Path) -> None:
    """MLflow's migrations would put dozens of lines between the user and the progress bar."""
    program = (
        "from pathlib import Path; from infra.tracking.tracker import Tracker; import logging, sys; logging.basicConfig(level='INFO')\n"
    )
    program += "tracker = Tracker.open(sys.argv[1], 'demo', Path(sys.argv[2])); run = tracker.start_run('realign')\n"
    program += "assert tracker.mlflow_id(run, wait_seconds=120); assert tracker.close() == []"
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", str(tmp_path / "spool")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""


def test_a_spool_of_a_living_tracker_is_left_alone(tmp_path: Path) -> None:
    mine = Spool.create(tmp_path, "key")
    mine.append({"kind": "start"})
    assert Spool.adopt(tmp_path, "key") == []
    mine.close()
    [adopted] = Spool.adopt(tmp_path, "key")
    assert adopted.pending == [(1, {"kind": "start"})]
    adopted.acknowledge(1)
    adopted.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.component
def test_a_realignment_on_a_server(mlflow_server: str, tmp_path: Path) -> None:
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_server, "on-server", tmp_path / "spool", artifact_root=tmp_path / "unused")
    _, stage = record_a_realignment(tracker, tmp_path)
    mlflow_id = tracker.mlflow_id(stage, wait_seconds=60)
    assert tracker.close() == []
    check_the_realignment(mlflow_server, "on-server", started)
    experiment = mlflow_client(mlflow_server).get_experiment_by_name("on-server").experiment_id
    assert tracker.url(stage) == f"{mlflow_server}/#/experiments/{experiment}/runs/{mlflow_id}?workflowType=machine_learning"


@pytest.mark.fault(10)
@pytest.mark.component
def test_what_a_dead_server_missed_is_sent_by_the_next_tracker(mlflow_server: str, tmp_path: Path) -> None:
    """The same address first refuses, then serves: a relay that starts late."""
    started = time.time() - 0.001
    relay = socket.socket()
    relay.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    relay.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
    uri = f"http://127.0.0.1:{relay.getsockname()[1]}"
    tracker = Tracker.open(uri, "relayed", tmp_path / "spool")
    _, stage = record_a_realignment(tracker, tmp_path)
    [warning] = tracker.close()
    assert "wait in" in warning and "refused" in warning and tracker.mlflow_id(stage) is None

    relay.listen()
    threading.Thread(target=_relay, args=(relay, int(mlflow_server.rsplit(":", 1)[1])), daemon=True).start()
    assert Tracker.open(uri, "relayed", tmp_path / "spool").close() == []
    check_the_realignment(mlflow_server, "relayed", started)
    assert list((tmp_path / "spool").iterdir()) == []
    relay.close()


def _waiting_connections(listener: socket.socket) -> int:
    listener.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def _relay(listener: socket.socket, port: int) -> None:
    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


@pytest.mark.fault(10)
@pytest.mark.component
def test_a_server_that_never_answers_keeps_nothing_from_returning(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        tracker = Tracker.open(f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}", "demo", tmp_path / "spool")
        record_a_realignment(tracker, tmp_path)
        assert len(tracker._queue) == tracker._spool.open_operations > 10, "every call has returned, and none has been sent"
        [warning] = tracker.close(patience_seconds=0.5)  # returns although the request is still out
        assert _waiting_connections(silent) < 4, "the first operation alone has gone out, now and then again"
        assert "wait in" in warning and "secret" not in warning
    [log] = (tmp_path / "spool").glob("*.jsonl")
    assert "secret" not in log.read_text()


@pytest.mark.fault(10)
def test_another_server_that_took_the_port_costs_nothing(mlflow_sqlite: str, empty_mlflow_database: Path, tmp_path: Path) -> None:
    """It knows none of our runs; that is no reason to throw away what they still have to say."""
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "spool", history="ours")
    run = tracker.start_run("realign")
    mlflow_id = tracker.mlflow_id(run, wait_seconds=60)
    assert mlflow_id
    tracker._calls._client = mlflow_client(f"sqlite:///{shutil.copy(empty_mlflow_database, tmp_path / 'others.db')}")
    tracker.log_metrics(run, {"loss": 0.5})
    tracker.finish(run, "FINISHED")
    [warning] = tracker.close()
    assert "2 MLflow updates" in warning and "not found" in warning

    moved = f"{mlflow_sqlite}?timeout=30"  # ours again, at another address
    assert Tracker.open(moved, "demo", tmp_path / "spool", history="ours").close() == []
    stored = mlflow_client(mlflow_sqlite).get_run(mlflow_id)
    assert stored.info.status == "FINISHED" and stored.data.metrics == {"loss": 0.5}


@contextmanager
def refusing(status: int) -> Iterator[str]:
    """A server that answers every request so, in HTML; gives its address."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(status)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_password_keeps_what_waits_and_names_the_remedy(status: int, tmp_path: Path) -> None:
    with refusing(status) as uri:
        tracker = Tracker.open(uri, "demo", tmp_path / "spool")
        tracker.start_run("realign")
        [warning] = tracker.close()
    assert "2 MLflow updates" in warning and f"it refuses us ({status}): set DORA_AUTH to its user:password" in warning


@pytest.mark.fault(10)
def test_a_port_that_speaks_no_mlflow_costs_nothing(tmp_path: Path) -> None:
    """One that wants https answers 400 to everything: that is the address's fault, not that of what is sent."""
    with refusing(400) as uri:
        tracker = Tracker.open(uri, "demo", tmp_path / "spool")
        tracker.finish(tracker.start_run("realign"), "FINISHED")
        [warning] = tracker.close()
    assert warning.startswith(f"2 MLflow updates for {uri} wait in ") and "failed with error code 400" in warning


@pytest.mark.parametrize(("status", "is_for_ever"), [(413, True), (401, False)])
def test_an_artifact_that_a_proxy_refuses_does_not_hold_up_the_rest(status: int, is_for_ever: bool, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(b"x")
    calls = MlflowCalls("http://127.0.0.1:9")
    calls._client = MlflowClient("http://127.0.0.1:9")
    with refusing(status) as uri, pytest.raises(requests.HTTPError) as raised:
        HttpArtifactRepository(f"{uri}/api/2.0/mlflow-artifacts/artifacts/run").log_artifact(str(tmp_path / "figure.png"))
    assert calls.is_refusal({"kind": "artifact", "run": "r"}, raised.value) is is_for_ever


@pytest.mark.parametrize(
    ("given", "expected"),
    [("h(y)/auc@0.5", "h_y_/auc_0.5"), ("../../x", "x"), ("λ", "_"), ("", "_"), ("a" * 300, "a" * 250), ("loss", "loss")],
)
def test_clean_name(given: str, expected: str) -> None:
    assert clean_name(given) == expected


def test_shorten_keeps_length_and_digest_of_the_whole() -> None:
    assert shorten("abc", 3) == "abc"
    short = shorten("a" * 201, 200)
    assert len(short) == 200 and "201 characters" in short and short != shorten("a" * 200 + "b", 200)
    assert shorten("\ud800", 10) == "?"


def test_flatten() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}, "d": "x"}, "e": [1, 2], "f": {}, "g": True})) == {
        "a.b.c": "1",
        "a.d": "x",
        "e": "[1, 2]",
        "f": "{}",
        "g": "true",
    }


def test_without_credentials() -> None:
    assert without_credentials("at https://me:pw@host:5000/x failed") == "at https://host:5000/x failed"
