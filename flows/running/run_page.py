"""The MLflow run of a whole run, which people open first: description, report, figures, curves and datasets.

Its metrics for comparing runs are in ``round_runs.py``; the nested runs of the stages have everything else. Cached stages are shown, too,
so that two runs can be compared without a look at the run that computed them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dora_core.errors import DoraError
from flows.planning.planned_stage import PlannedStage
from flows.run_record import RunRecord
from infra.settings import Places
from infra.store.journal import JournalPart, JournalReader
from infra.store.json_files import StoredResult
from infra.store.store import Store
from infra.tracking.tracker import Tracker
from tasks.runtime.spec import StageRef
from tasks.stages import ingest, promote
from tasks.stages.registry import STAGES, parse_result
from tasks.tables.artifacts import RECORDS_FILE

REPORT = "report.html"
DIGESTS = "digests.json"
NO_REPORT = ("study", "tune")
"""Flows with a page of another kind, which they log themselves."""


@dataclass
class RunPage:
    """See the module docstring.

    Args:
        run: local id of the MLflow run; None for a run without work, which logs nothing.
        inputs: ``{URI: digest}`` of the input files.
    """

    tracker: Tracker
    run: str | None
    store: Store
    places: Places
    inputs: Mapping[str, str]
    _has_datasets: bool = field(default=False, init=False)

    def follow(self, stage: PlannedStage, part: JournalPart) -> None:
        """Log the curves in one part of a training's journal."""
        if self.run is not None and is_main_training(stage):
            self.tracker.replay(self.run, part, prefix=f"{plain(stage.label)}/")

    def stage(self, stage: PlannedStage, result: StoredResult, images: Mapping[str, bytes] | None = None) -> None:
        """Log what the page shows of a finished stage.

        Args:
            images: its figures; None for a stage that was cached: they are drawn, and its curves replayed.
        """
        if self.run is None:
            return
        if images is None:
            from flows.report.figures import figures_for

            images = self.tracker.drawn(figures_for(parse_result(result)))
            for part in JournalReader(self.store, stage.stage, stage.digest).new_parts(ended=True):
                self.follow(stage, part)
        self.tracker.log_images(self.run, images, f"figures/{plain(stage.label)}")
        if is_main_training(stage):
            self.tracker.log_metrics(self.run, {f"{plain(stage.label)}/{name}": value for name, value in result["metrics"].items()})
        if stage.stage == ingest.STAGE.name:
            self._datasets(parse_result(result).facts, StageRef(stage=stage.stage, digest=stage.digest))

    def _datasets(self, facts: ingest.Facts | None, records: StageRef | None) -> None:
        assert self.run is not None, "a run without work has no datasets"
        if not self._has_datasets:
            self._has_datasets = True
            log_files(self.tracker, self.run, self.inputs, facts)
            if records is not None:
                uri = f"{self.store.uri}/{records.stage}/{records.digest}/{RECORDS_FILE}"
                columns, rows = table_of(uri)
                self.tracker.log_input(self.run, "records", uri, records.digest, "training", columns, rows)

    def ended(self, record: RunRecord) -> dict[str, str]:
        """Return the tags of the run that has just ended, its description among them; logs what the page still lacks."""
        assert self.run is not None, "a run without work has no page"
        self._datasets(None, None)
        self.tracker.log_document(self.run, DIGESTS, {s.label: {"place": s.place, "state": s.state} for s in record.stages})
        promotion = self._promotion(record)
        tags = {
            "dora.status": record.status,
            "dora.error": record.error.message if record.error else "",
            "dora.decision": record.decision or "",
            "dora.decided_by": record.decided_by or "",
            "dora.model": f"models:/{promotion.model_name}/{promotion.version}" if promotion else "",
            "mlflow.note.content": self._description(record, promotion),
        }
        return {name: text for name, text in tags.items() if text}

    def _promotion(self, record: RunRecord) -> promote.Facts | None:
        from flows.report.head import promotion_of

        with suppress(DoraError, OSError):
            return promotion_of(self.store, record)
        return None

    def _description(self, record: RunRecord, promotion: promote.Facts | None) -> str:
        """Return verdict, reason, numbers and links as Markdown; without the parts that the store cannot give."""
        from flows.report.head import head_of
        from flows.run_summary import evaluation_summary

        head, summary = head_of(record, promotion), ""
        with suppress(DoraError, OSError):
            summary = evaluation_summary(self.store, record)
        why = [text for text in (head.text, f"**{head.reason}**" if head.reason else "", f"{summary[:1].upper()}{summary[1:]}") if text]
        model = (promotion.model_name, promotion.version) if promotion else None
        links = " · ".join(f"[{name}]({link})" for name, link in self.links(record, model).items())
        steps = "\n".join(f"- {step}" for step in head.steps)
        command = f"Report: artifact `{REPORT}`, or `dora report {record.run_id}`" if record.flow not in NO_REPORT else ""
        return "\n\n".join(filter(None, (f"### {head.title}", links, *why, steps, command)))  # the page folds all but the first lines

    def links(self, record: RunRecord, model: tuple[str, str] | None) -> dict[str, str]:
        """Return the pages that belong to the run, by name; none where there is no server.

        Args:
            model: name and version of the registered model.
        """
        assert self.run is not None, "a run without work has no page"
        report = None if record.flow in NO_REPORT else self.tracker.artifact_url(self.run, REPORT)
        found = {
            "report": report and self.places.page(report),
            "Prefect run": record.links.prefect,
            f"{model[0]} version {model[1]}" if model else "": self.places.page(self.tracker.version_url(*model) or "") if model else "",
        }
        return {name: link for name, link in found.items() if name and link and link.startswith("http")}

    def report(self, record: RunRecord) -> str | None:
        """Draw the run's report, from its manifest, and log it; returns a warning where that failed."""
        if self.run is None or record.flow in NO_REPORT or record.status == "cancelled":
            return None  # a cancelled run ends at once
        try:
            from flows.report.page import render

            self.tracker.log_text(self.run, REPORT, render(self.store, record.run_id))
        except Exception as error:  # a page that cannot be drawn must not hide how the run ended
            return f"the report is not in MLflow: {type(error).__name__}: {error}"
        return None


def is_main_training(stage: PlannedStage) -> bool:
    """Whether a stage's curves are on the page: those of twins are on the stages' own runs, where they crowd out nothing."""
    return STAGES[stage.stage].section == "training" and (stage.label == stage.stage or stage.round is not None)


def plain(label: str) -> str:
    """Return a stage's label as part of a metric's name: ``"align (erm twin)"`` is ``"align erm twin"``."""
    return " ".join(re.sub(r"[^\w. -]", " ", label).split())


def log_files(tracker: Tracker, run: str, files: Mapping[str, str], facts: ingest.Facts | None) -> None:
    """Log the input files as datasets.

    Args:
        files: ``{URI: digest}``.
        facts: of the stage that has read them; the number of rows of files that do not say it.
    """
    counted = {entry.path: entry.rows for entry in facts.inputs} if facts else {}
    for uri, digest in files.items():
        columns, rows = table_of(uri)
        tracker.log_input(run, PurePosixPath(uri).name, uri, digest, "input", columns, counted.get(uri) if rows is None else rows)


def table_of(uri: str) -> tuple[dict[str, str], int | None]:
    """Return columns (name → Arrow type) and number of rows of a file on this machine, from its first bytes; empty and None where the file
    does not say it so quickly."""
    path = Path(uri)
    if "://" in uri or not path.is_file():
        return {}, None
    with suppress(Exception):  # the stage that reads the file reports its mistakes
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            metadata = pq.read_metadata(path)
            return _columns(metadata.schema.to_arrow_schema()), metadata.num_rows
        if path.suffix in (".jsonl", ".ndjson"):
            import pyarrow.json as jsonl

            with jsonl.open_json(path) as lines:
                return _columns(lines.schema), None
        if path.suffix == ".csv":
            import pyarrow.csv as csv

            with csv.open_csv(path) as table:
                return _columns(table.schema), None
    return {}, None


def _columns(schema: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}
