"""The MLflow run of a whole run has what people look for: verdict, links, report, figures, curves, datasets; also of cached stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run

from flows.planning.planned_stage import PlannedStage
from flows.run_record import RunRecord, read_record
from flows.running.run_page import DIGESTS, REPORT, RunPage, plain, table_of
from infra.settings import Places
from infra.store.journal import read_part
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.tracker import Tracker
from tests.flows.report.runs import make_run
from tests.flows.running.planned import plan_of

PLACES = Places(mlflow_uri="sqlite:///mlflow.db", prefect_api_url=None, ray_dashboard=None)


def staged(stage: str, digest: str, label: str = "") -> PlannedStage:
    """A planned stage that stands for a finished one: its name and digest are all that is read."""

    class Named:
        digest = lambda self: digest  # noqa: E731
        stage = ""

    spec = Named()
    spec.stage = stage
    return replace(plan_of(1).stages[0], label=label or stage, spec=spec, cached=True, reason="cached: as before")  # type: ignore[arg-type]


def shown(uri: str, tracker: Tracker, run: str) -> Run:
    return mlflow_client(uri).get_run(tracker.mlflow_id(run))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def logged(store: Store, record: RunRecord, uri: str, folder: Path, inputs: dict[str, str]) -> tuple[Tracker, str]:
    """Log a finished run whose stages were all cached, as a session does."""
    tracker = Tracker.open(uri, "demo", folder / "outbox", artifact_root=folder / "artifacts")
    run = tracker.start_run("demo")
    page = RunPage(tracker, run, store, PLACES, inputs)
    for entry in record.stages:
        result = store.read_result(entry.stage, entry.digest)
        assert result is not None
        page.stage(staged(entry.stage, entry.digest, entry.label), result)
    tracker.finish(run, "FINISHED", page.ended(record))
    assert page.report(record) is None
    assert tracker.close() == []
    return tracker, run


def test_verdict_report_figures_curves_and_datasets_of_cached_stages(tmp_path: Path, store: Store, mlflow_sqlite: str) -> None:
    record = read_record(store, make_run(store, ["human", "gpt"]))
    assert record is not None
    align = record.stage("align")
    part = f"align/{align.digest}/journal/00-1-000000.jsonl"
    events = [{"kind": "metrics", "step": step, "values": {"loss": 0.5 - 0.125 * step}, "time": 1000.0 + step} for step in range(3)]
    store.local(part).parent.mkdir(parents=True)
    store.local(part).write_text("".join(json.dumps(event) + "\n" for event in events))
    assert len(read_part(store, part).events) == 3
    data = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "score": [0.5, 1.0], "tags": [["x"], []]}), data)

    tracker, run = logged(store, record, mlflow_sqlite, tmp_path, {str(data): "f" * 64})
    found, client = shown(mlflow_sqlite, tracker, run), mlflow_client(mlflow_sqlite)
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("### refused") and "[Prefect run](http://127.0.0.1:4200/runs/flow-run/1)" in note
    assert "KL(policy‖start) per response, nats, at most 50: 61.2" in note, "the one reason"
    assert found.data.tags["dora.model"] == "models:/demo/4"
    curve = client.get_metric_history(found.info.run_id, "align/loss")
    assert [(point.step, point.value, point.timestamp) for point in curve] == [(0, 0.5, 10**6), (1, 0.375, 1001000), (2, 0.25, 1002000)]

    files = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert files >= {REPORT, DIGESTS, "figures"}
    figures = {item.path for item in client.list_artifacts(found.info.run_id, "figures")}
    assert figures >= {"figures/align", "figures/calibrate", "figures/evaluate"}
    digests = json.loads(Path(client.download_artifacts(found.info.run_id, DIGESTS)).read_text())
    assert digests["align"] == {"place": align.place, "state": "ran"} and set(digests) == {stage.label for stage in record.stages}
    assert "refused" in Path(client.download_artifacts(found.info.run_id, REPORT)).read_text()

    datasets = {entry.dataset.name: entry.dataset for entry in found.inputs.dataset_inputs}
    assert set(datasets) == {"pairs.parquet", "records"}
    assert json.loads(datasets["pairs.parquet"].profile) == {"num_rows": 2}
    columns: list[dict[str, Any]] = json.loads(datasets["pairs.parquet"].schema)["mlflow_colspec"]
    types = [(column["name"], column["type"]) for column in columns]
    assert types == [("prompt", "string"), ("score", "double"), ("tags", "list<element: string>")]


def test_a_failed_run_has_its_reason_and_the_next_command_and_no_figures(tmp_path: Path, store: Store, mlflow_sqlite: str) -> None:
    error = {"message": "align: row 3 is bad", "hint": "drop it"}
    record = read_record(store, make_run(store, ["human"], without=("promote",), status="failed", error=error, stages=[], decision=None))
    assert record is not None
    tracker, run = logged(store, record, mlflow_sqlite, tmp_path, {})
    tags = shown(mlflow_sqlite, tracker, run).data.tags
    assert tags["dora.error"] == "align: row 3 is bad" and "dora.decision" not in tags
    note = tags["mlflow.note.content"]
    assert note.startswith("### failed") and "**align: row 3 is bad**" in note and "- drop it" in note


def test_a_run_without_work_logs_nothing_and_a_cancelled_one_draws_no_report(tmp_path: Path, store: Store) -> None:
    record = read_record(store, make_run(store, ["human"], status="cancelled"))
    assert record is not None
    tracker = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "outbox")
    quiet = RunPage(tracker, None, store, PLACES, {})
    quiet.stage(staged("align", record.stage("align").digest), {})  # type: ignore[typeddict-item]
    assert quiet.report(record) is None
    assert RunPage(tracker, tracker.start_run("r"), store, PLACES, {}).report(record) is None
    written = "".join(path.read_text() for path in (tmp_path / "outbox").glob("*.jsonl"))
    assert "artifact" not in written.replace("artifact_root", "")
    tracker.close(patience_seconds=0.0)


def test_a_report_that_cannot_be_drawn_is_a_warning(tmp_path: Path, store: Store) -> None:
    record = read_record(store, make_run(store, ["human"]))
    assert record is not None
    tracker = Tracker.open("http://127.0.0.1:9", "demo", tmp_path / "outbox")
    page = RunPage(tracker, tracker.start_run("r"), store, PLACES, {})
    warning = page.report(record.evolve(run_id="gone"))
    assert warning is not None and warning.startswith("the report is not in MLflow: ReportError: run 'gone' has no manifest")
    tracker.close(patience_seconds=0.0)


def test_a_label_becomes_the_folder_of_a_metric() -> None:
    assert plain("align (erm twin)") == "align erm twin" and plain("align") == "align" and plain("align · round 2") == "align round 2"


def test_columns_and_rows_of_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "x", "rewards": [1.5]}\n')
    assert table_of(str(lines)) == ({"prompt": "string", "rewards": "list<item: double>"}, None)
    table = tmp_path / "a.csv"
    table.write_text("prompt,score\nx,3\n")
    assert table_of(str(table)) == ({"prompt": "string", "score": "int64"}, None)
    (tmp_path / "broken.parquet").write_text("no parquet")
    assert (
        table_of(str(tmp_path / "broken.parquet"))
        == table_of("s3://bucket/a.parquet")
        == table_of(str(tmp_path / "none.csv"))
        == ({}, None)
    )
