"""The page of one realignment or self-training: self-contained HTML from the run's manifest and the ``result.json`` of its stages.

A section shows one stage, in self-training that of the last round that has one; ``rounds.py`` shows how rounds differ. The sections
follow from the stages' descriptors (``section``): a stage has a template of its name beside this file, all trainings share
``training.html``. Nothing is computed here and nothing loaded from elsewhere: style and figures are inline, so the file can be mailed,
archived and opened without a server. Everything that comes from data is escaped. A stage without a result gets a sentence with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows.report.find import manifest_of
from flows.report.head import head_of, promotion_of
from flows.report.html import InlineFigure, inline_figures, render_template, web_links, yaml_text
from flows.report.rounds import rounds_view
from flows.run_record import RunRecord, StageRecord
from infra.store.json_files import StoredResult
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.runtime.facts import Facts
from tasks.stages import align, promote
from tasks.stages.registry import STAGES, parse_result

ENDED = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "stopped": "was stopped",
    "completed": "ended",
    "waiting": "waits for a person",
}


@dataclass(frozen=True)
class Page:
    """A run and the results of its stages.

    Attributes:
        stored: ``result.json`` by label, of the stages that this run finished: a later run may have computed others of the same digest.
        promotion: as this run saw it.
    """

    run: RunRecord
    stored: dict[str, StoredResult]
    promotion: promote.Facts | None = None

    @classmethod
    def of(cls, store: Store, run: RunRecord) -> Page:
        finished = [entry for entry in run.stages if entry.is_finished and entry.digest]
        found = {entry.label: store.read_result(entry.stage, entry.digest) for entry in finished}
        promotion = promotion_of(store, run)
        gone = {entry.label for entry in finished if entry.stage == promote.STAGE.name and promotion is None}
        return cls(run, {label: content for label, content in found.items() if content is not None and label not in gone}, promotion)

    @cached_property
    def results(self) -> dict[str, StageResult[Any]]:
        return {label: parse_result(content) for label, content in self.stored.items()}

    @cached_property
    def shown(self) -> dict[str, StageRecord]:
        """Manifest entry of each stage with a separate section: its last one with a result."""
        last = {entry.stage: entry for entry in self.run.stages if entry.label in self.stored}
        return {name: last[name] for name in stages_in("stage") if name in last}

    @cached_property
    def trainings(self) -> list[StageRecord]:
        """Finished trainings of the last round that has one."""
        finished = [entry for entry in self.run.stages if entry.stage in stages_in("training") and entry.label in self.stored]
        return [entry for entry in finished if entry.round == finished[-1].round]

    @property
    def has_policy(self) -> bool:
        """Whether a policy was trained; a round of self-training may fine-tune in place of an alignment."""
        return any(entry.stage == align.STAGE.name or entry.round for entry in self.trainings)

    @property
    def facts(self) -> dict[str, Facts]:
        """By stage, and by label of the trainings."""
        found = {name: self.results[entry.label].facts for name, entry in self.shown.items()}
        if self.promotion is not None and promote.STAGE.name in found:
            found[promote.STAGE.name] = self.promotion
        return found | {entry.label: self.results[entry.label].facts for entry in self.trainings}

    @property
    def figures(self) -> dict[str, list[InlineFigure]]:
        """By stage, and by label of the trainings."""
        drawn = {name: inline_figures(name, self.results[entry.label]) for name, entry in self.shown.items()}
        return drawn | {entry.label: inline_figures(entry.label, self.results[entry.label]) for entry in self.trainings}

    def why_missing(self, stage: str) -> str:
        """Return the reason for a section without a result."""
        planned = next((entry for entry in self.run.stages if entry.stage == stage), None)
        if planned is None:
            objective = self.run.config.get("align", {}).get("objective", {}).get("name", "chosen")
            return STAGES[stage].unplanned.format(objective=objective)
        if planned.state == "failed":
            return f"The stage failed{': ' + self.run.error.message if self.run.error else '.'}"
        if planned.is_finished and stage == promote.STAGE.name and self.run.decision is not None:
            return f"This run decided: {self.run.decision}. A later run has decided about the same model since; its page has the details."
        if planned.state in ("pending", "running"):
            if self.run.status == "running":
                return "The stage is running." if planned.state == "running" else "The stage has not run yet."
            return f"The stage did not finish: the run {ENDED[self.run.status]} first."
        return "The stage's result is no longer in the store."


def stages_in(section: str) -> list[str]:
    """Names of the stages with this kind of section, in the order of the pipeline."""
    return [name for name, stage in STAGES.items() if stage.section == section]


def sections() -> list[str]:
    """Templates of the page's sections, in the order of the pipeline; the trainings share the place of the first of them."""
    names = (name if stage.section == "stage" else stage.section for name, stage in STAGES.items() if stage.section is not None)
    return [f"{name}.html" for name in dict.fromkeys(names)]


def render(store: Store, run_id: str) -> str:
    """Render the page.

    Raises:
        ReportError: the run has no manifest.
    """
    run = manifest_of(store, run_id)
    page = Page.of(store, run)
    return render_template(
        "page.html",
        run=run,
        sections=sections(),
        config=yaml_text(run.config),
        links=web_links(run.links),
        results=page.results,
        facts=page.facts,
        figures=page.figures,
        round_of={name: entry.round for name, entry in page.shown.items()},
        missing={name: page.why_missing(name) for name in stages_in("stage")},
        missing_policy=None if page.has_policy else page.why_missing(align.STAGE.name),
        training=[entry.label for entry in page.trainings],
        rounds=rounds_view(run, page.results),
        head=head_of(run, page.promotion),
    )
