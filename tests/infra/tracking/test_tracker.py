import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from infra.store.journal import JournalPart, read_part
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.tracker import Tracker
from tests.infra.tracking.refusing import refusing


def journal_part(folder: Path, events: list[dict[str, Any]], number: int = 0) -> JournalPart:
    """Write one part of a stage's journal, and read it as a run does."""
    store = Store(str(folder / "store"))
    name = f"align/{'a' * 64}/journal/00-1-{number:06d}.jsonl"
    store.local(name).parent.mkdir(parents=True, exist_ok=True)
    store.local(name).write_text("".join(json.dumps(event) + "\n" for event in events))
    return read_part(store, name)


def losses(steps: range) -> list[dict[str, Any]]:
    return [{"kind": "metrics", "step": step, "values": {"loss": 1.0 / (step + 1)}, "time": 1000.0 + step} for step in steps]


def record_a_realignment(tracker: Tracker, tmp_path: Path) -> tuple[str, str]:
    """Make every call that a flow makes; returns the local ids of the parent and the stage run."""
    parent = tracker.start_run("realign", tags={"git": "abc"}, params={"align": {"loss": {"beta": 0.1}, "steps": None}, "long": "x" * 7000})
    stage = tracker.start_run("align", parent=parent, tags={"stage": "align"})
    columns = {"prompt": "large_string", "score": "double", "pair": "struct<a: string>"}
    tracker.log_input(stage, "records", "s3://user:secret@bucket/records", "d" * 64, "training", columns, 7)
    events = [{"kind": "metrics", "step": s, "values": {"loss(mean)": 1.0 / (s + 1)}, "time": 1000.5 + s} for s in range(1500)]
    progress = {"kind": "progress", "done": 1, "total": 2, "unit": "steps", "note": "", "time": 5.0}
    tracker.replay(stage, journal_part(tmp_path, [*events, progress], 0))
    tracker.replay(stage, journal_part(tmp_path, [progress], 1))
    tracker.replay(parent, journal_part(tmp_path, losses(range(2)), 2), prefix="align/")
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    tracker.log_result(
        stage, {"rows": 7, "seconds": 1.5, "metrics": {"accuracy": 0.75, "bad": float("nan")}}, tracker.drawn({"loss": figure})
    )
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
    history = sorted(client.get_metric_history(stage.info.run_id, "loss_x28_mean_x29_"), key=lambda m: m.step)
    assert [m.step for m in history] == list(range(1500)) and history[3].value == 0.25 and history[3].timestamp == 1_003_500
    [given] = stage.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("records", "d" * 36) and given.tags[0].value == "training"
    schema = [(column["name"], column["type"]) for column in json.loads(given.dataset.schema)["mlflow_colspec"]]
    assert schema == [("prompt", "string"), ("score", "double"), ("pair", "struct<a: string>")]
    assert json.loads(given.dataset.profile) == {"num_rows": 7}
    assert [m.value for m in client.get_metric_history(parent.info.run_id, "align/loss")] == [1.0, 0.5]
    kind = client.get_experiment(experiment).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development", "the training pages, not those for agents"
    assert json.loads(given.dataset.source) == {"uri": "s3://bucket/records", "digest": "d" * 64}
    assert [a.path for a in client.list_artifacts(stage.info.run_id, "figures")] == ["figures/loss.png"]
    assert Path(client.download_artifacts(stage.info.run_id, "figures/loss.png")).read_bytes().startswith(b"\x89PNG")
    assert Path(client.download_artifacts(parent.info.run_id, "config.yaml")).read_text() == "project: demo\n"


def test_a_realignment_in_sqlite_with_artifacts_under_the_given_root(mlflow_sqlite: str, tmp_path: Path) -> None:
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts")
    _, stage = record_a_realignment(tracker, tmp_path)
    assert tracker.close() == []
    check_the_realignment(mlflow_sqlite, "demo", started)
    assert list((tmp_path / "outbox").iterdir()) == []
    mlflow_id = tracker.mlflow_id(stage)
    assert mlflow_id is not None and (tmp_path / "mlartifacts/demo" / mlflow_id / "artifacts/result.json").is_file()
    assert tracker.url(stage) is None  # no server, no page


def test_runs_left_open_end_as_killed_and_calls_after_close_change_nothing(mlflow_sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox")
    run = tracker.start_run("realign")
    assert tracker.close() == []
    tracker.finish(run, "FINISHED")
    assert tracker.close() == []
    assert mlflow_client(mlflow_sqlite).get_run(tracker.mlflow_id(run)).info.status == "KILLED"


def test_a_refused_update_is_reported_and_the_rest_arrives(mlflow_sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox")
    run = tracker.start_run("realign", params={"seed": 1})
    tracker._texts(run, params=[("seed", "2")])  # MLflow's params are immutable
    tracker.finish(run, "FINISHED", tags={"last": "yes"})
    [warning] = tracker.close()
    assert warning.startswith("MLflow refused seed:") and "seed" in warning
    stored = mlflow_client(mlflow_sqlite).get_run(tracker.mlflow_id(run))
    assert stored.info.status == "FINISHED" and stored.data.tags["last"] == "yes" and stored.data.params == {"seed": "1"}


@pytest.mark.fault(10)
def test_what_waited_goes_in_few_calls_and_a_refusal_costs_the_refused_alone(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty hours of training are tens of thousands of small batches: one call each would take longer than the end of a run may."""
    away = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "outbox", history="ours")
    run = away.start_run("realign", tags={"first": "yes"}, params={"seed": 1})
    for step in range(1500):
        away.log_metrics(run, {"loss": 1.0 / (step + 1)}, step=step)
    for step in range(1500, 2500):
        away.replay(run, journal_part(tmp_path, losses(range(step, step + 1)), step))
    away._texts(run, params=[("seed", "2")])  # MLflow's params are immutable
    away.log_metrics(run, {"late": 1.0})
    away.finish(run, "FINISHED")
    away.close(patience_seconds=0.1)

    client, sizes, log_batch = mlflow_client(mlflow_sqlite), [], MlflowClient.log_batch

    def counted(*arguments: object, metrics: list, **others: object) -> None:
        sizes.append(len(metrics))
        log_batch(*arguments, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    back = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", history="ours")
    [warning] = back.close()
    assert warning.startswith("MLflow refused seed:") and "seed" in warning
    assert sum(size == 998 for size in sizes) >= 1 and max(sizes) <= 1000, "with a tag and a parameter; 1000 entries are MLflow's limit"
    stored = client.get_run(back.mlflow_id(run))
    assert stored.info.status == "FINISHED" and stored.data.params == {"seed": "1"} and stored.data.metrics["late"] == 1.0
    assert [m.step for m in sorted(client.get_metric_history(stored.info.run_id, "loss"), key=lambda m: m.step)] == list(range(2500))


@pytest.mark.fault(10)
def test_curves_that_wait_are_read_from_the_journal_and_not_copied(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A part that was deleted by hand meanwhile costs its own points, with a warning."""
    away = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "outbox", history="ours")
    run = away.start_run("realign")
    for number in range(3):
        away.replay(run, journal_part(tmp_path, losses(range(100 * number, 100 * number + 100)), number))
    away.finish(run, "FINISHED")
    away.close(patience_seconds=0.1)
    assert "loss" not in away._outbox.path.read_text() and away._outbox.path.stat().st_size < 2000
    (deleted,) = (tmp_path / "store").rglob("*-000001.jsonl")
    deleted.unlink()

    back = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", history="ours")
    [warning] = back.close()
    assert warning.startswith("metrics of align/") and deleted.name in warning and str(tmp_path / "store") in warning
    client = mlflow_client(mlflow_sqlite)
    stored = client.get_run(back.mlflow_id(run))
    history = sorted(point.step for point in client.get_metric_history(stored.info.run_id, "loss"))
    assert stored.info.status == "FINISHED" and history == [*range(100), *range(200, 300)]
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.fault(10)
def test_a_repeated_delivery_changes_nothing(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A process may die between MLflow's answer and its acknowledgement."""
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts")
    record_a_realignment(tracker, tmp_path)
    lines = tracker._outbox.path.read_text().splitlines(keepends=True)
    log = "".join(line for line in lines if "op" in json.loads(line))
    name, kept = tracker._outbox.path, tracker._outbox.files
    copies = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*.*")}
    assert tracker.close() == []
    for path, content in copies.items():
        (kept / path).parent.mkdir(parents=True)
        (kept / path).write_bytes(content)
    name.write_text(log)  # as if nothing had been acknowledged
    assert Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts").close() == []
    check_the_realignment(mlflow_sqlite, "demo", started)
    assert not name.exists()


def _start_and_die(uri: str, outbox: Path) -> None:
    tracker = Tracker.open(uri, "demo", outbox, history="ours")
    assert tracker.mlflow_id(tracker.start_run("realign"), wait_seconds=60)
    os._exit(9)


@pytest.fixture(scope="module")
def killed_once(empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the MLflow database and the outbox of a process that was killed after it had started a run."""
    folder = tmp_path_factory.mktemp("killed")
    uri = f"sqlite:///{shutil.copy(empty_mlflow_database, folder / 'mlflow.db')}"
    process = multiprocessing.get_context("spawn").Process(target=_start_and_die, args=(uri, folder / "outbox"))
    process.start()
    process.join()
    assert process.exitcode == 9
    return folder


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> tuple[str, Path]:
    """A copy of it: address of MLflow, outbox."""
    folder = shutil.copytree(killed_once, tmp_path / "killed")
    return f"sqlite:///{folder / 'mlflow.db'}", folder / "outbox"


@pytest.mark.fault(7)
@pytest.mark.component
def test_the_run_of_a_killed_process_is_closed_by_the_next_tracker(killed: tuple[str, Path]) -> None:
    uri, outbox = killed
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    assert [r.info.status for r in client.search_runs([experiment])] == ["RUNNING"]
    assert Tracker.open(uri, "demo", outbox, history="ours").close() == []
    [run] = client.search_runs([experiment])
    assert run.info.status == "KILLED" and run.data.tags["dora.error"] == "its process is gone"


@pytest.mark.fault(7, 10)
@pytest.mark.component
def test_the_run_of_a_killed_process_is_closed_although_mlflow_was_away_for_the_next_tracker(killed: tuple[str, Path]) -> None:
    """The tracker that ends the run finds all updates of the killed one sent, and needs the id that only the latter's outbox has."""
    uri, outbox = killed
    [warning] = Tracker.open("http://127.0.0.1:9", "demo", outbox, history="ours").close(patience_seconds=0.1)
    assert warning.startswith("2 MLflow updates for http://127.0.0.1:9 wait")
    assert Tracker.open(uri, "demo", outbox, history="ours").close() == []
    client = mlflow_client(uri)
    [run] = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.info.status == "KILLED" and run.data.tags["dora.error"] == "its process is gone"
    assert list(outbox.iterdir()) == []


@pytest.mark.component
def test_the_first_use_of_a_new_sqlite_file_is_quiet(tmp_path: Path) -> None:
    """MLflow's migrations would put dozens of lines between the user and the progress bar."""
    program = (
        "from pathlib import Path; from infra.tracking.tracker import Tracker; import logging, sys; logging.basicConfig(level='INFO')\n"
    )
    program += "tracker = Tracker.open(sys.argv[1], 'demo', Path(sys.argv[2])); run = tracker.start_run('realign')\n"
    program += "assert tracker.mlflow_id(run, wait_seconds=120); assert tracker.close() == []"
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", str(tmp_path / "outbox")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""


@pytest.mark.component
def test_a_realignment_on_a_server(mlflow_server: str, tmp_path: Path) -> None:
    started = time.time() - 0.001
    tracker = Tracker.open(mlflow_server, "on-server", tmp_path / "outbox", artifact_root=tmp_path / "unused")
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
    tracker = Tracker.open(uri, "relayed", tmp_path / "outbox")
    _, stage = record_a_realignment(tracker, tmp_path)
    [warning] = tracker.close()
    assert "wait in" in warning and "refused" in warning and tracker.mlflow_id(stage) is None

    relay.listen()
    threading.Thread(target=_relay, args=(relay, int(mlflow_server.rsplit(":", 1)[1])), daemon=True).start()
    assert Tracker.open(uri, "relayed", tmp_path / "outbox").close() == []
    check_the_realignment(mlflow_server, "relayed", started)
    assert list((tmp_path / "outbox").iterdir()) == []
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
        tracker = Tracker.open(f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}", "demo", tmp_path / "outbox")
        record_a_realignment(tracker, tmp_path)
        assert len(tracker._queue) == tracker._outbox.open_operations > 10, "every call has returned, and none has been sent"
        [warning] = tracker.close(patience_seconds=0.5)  # returns although the request is still out
        assert _waiting_connections(silent) < 4, "the first operation alone has gone out, now and then again"
        assert "wait in" in warning and "secret" not in warning
    [log] = (tmp_path / "outbox").glob("*.jsonl")
    assert "secret" not in log.read_text()


@pytest.mark.fault(10)
def test_another_server_that_took_the_port_costs_nothing(mlflow_sqlite: str, empty_mlflow_database: Path, tmp_path: Path) -> None:
    """It knows none of the runs; their updates are kept for the right server."""
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", history="ours")
    run = tracker.start_run("realign")
    mlflow_id = tracker.mlflow_id(run, wait_seconds=60)
    assert mlflow_id
    tracker._calls._client = mlflow_client(f"sqlite:///{shutil.copy(empty_mlflow_database, tmp_path / 'others.db')}")
    tracker.log_metrics(run, {"loss": 0.5})
    tracker.finish(run, "FINISHED")
    [warning] = tracker.close()
    assert "2 MLflow updates" in warning and "not found" in warning

    moved = f"{mlflow_sqlite}?timeout=30"  # the right server again, at another address
    assert Tracker.open(moved, "demo", tmp_path / "outbox", history="ours").close() == []
    stored = mlflow_client(mlflow_sqlite).get_run(mlflow_id)
    assert stored.info.status == "FINISHED" and stored.data.metrics == {"loss": 0.5}


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_password_keeps_what_waits_and_names_the_remedy(status: int, tmp_path: Path) -> None:
    with refusing(status) as uri:
        tracker = Tracker.open(uri, "demo", tmp_path / "outbox")
        tracker.start_run("realign")
        [warning] = tracker.close()
    assert "2 MLflow updates" in warning and f"it refuses us ({status}): set DORA_AUTH to its user:password" in warning


@pytest.mark.fault(10)
def test_a_port_that_speaks_no_mlflow_costs_nothing(tmp_path: Path) -> None:
    """A port that wants https answers 400 to everything: the address is wrong, not the updates."""
    with refusing(400) as uri:
        tracker = Tracker.open(uri, "demo", tmp_path / "outbox")
        tracker.finish(tracker.start_run("realign"), "FINISHED")
        [warning] = tracker.close()
    assert warning.startswith(f"2 MLflow updates for {uri} wait in ") and "failed with error code 400" in warning


def test_one_refused_row_costs_itself_alone(mlflow_sqlite: str, tmp_path: Path) -> None:
    """MLflow refuses a param that changes, and with it the whole call: the others of the batch arrive all the same."""
    first = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts")
    run = first.start_run("r", params={"a": 1, "b": 2})
    first.finish(run, "FINISHED")
    assert first.close() == []
    again = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts")
    again._calls.ids |= {run: first.mlflow_id(run) or ""}
    again.start_run("r", continues=run, params={"a": 9, **{f"p{i}": i for i in range(9)}})
    again.finish(run, "FINISHED")
    (note,) = again.close()
    assert note.startswith("MLflow refused a: ")
    params = mlflow_client(mlflow_sqlite).get_run(first.mlflow_id(run)).data.params
    assert params == {"a": "1", "b": "2"} | {f"p{i}": str(i) for i in range(9)}


def test_names_that_differ_only_in_characters_that_mlflow_refuses_stay_apart(mlflow_sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.open(mlflow_sqlite, "demo", tmp_path / "outbox", artifact_root=tmp_path / "mlartifacts")
    run = tracker.start_run(
        "r", params={"shares": {"人工": 0.75, "模型": 0.25, "a:b": 1, "a#b": 2}, "other": 1}, tags={"x?": "1", "x!": "2"}
    )
    metrics = {"share_模型甲": 0.7, "share_模型乙": 0.3, "win/gpt-4:a": 0.1, "win/gpt-4#a": 0.9}
    tracker.log_metrics(run, metrics)
    tracker.finish(run, "FINISHED")
    assert tracker.close() == []
    data = mlflow_client(mlflow_sqlite).get_run(tracker.mlflow_id(run)).data
    assert sorted(data.metrics.values()) == [0.1, 0.3, 0.7, 0.9] and data.metrics["share_模型甲"] == 0.7
    assert len(data.params) == 5 and {data.tags["x_x3f_"], data.tags["x_x21_"]} == {"1", "2"}
