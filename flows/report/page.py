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

from dora_core.errors import StoreError
from dora_core.evaluation.metrics import Interval
from flows.report.cost import cost_of
from flows.report.examples import examples
from flows.report.extremes import Extremes, by_factor, by_trust
from flows.report.find import manifest_of
from flows.report.head import head_of, promotion_of
from flows.report.html import InlineFigure, inline_figures, render_template, web_links, yaml_text
from flows.report.overview import Evidence, overview
from flows.report.past import SHOWN, evaluated, last_run, result_in, runs_of
from flows.report.rounds import rounds_view
from flows.report.since_last import gain_over_last
from flows.report.trend import nights, trend_figures
from flows.run_record import RunRecord, StageRecord
from infra.store.json_files import StoredResult
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.runtime.facts import Facts
from tasks.stages import align, calibrate, compare, evaluate, promote, value
from tasks.stages.registry import STAGES, parse_result

HIDDEN = (
    "Texts of the data are not shown. report.prompts: 6 shows that many prompts on every page of a run, "
    "dora report RUN --prompts 6 on one; keep such a page as you keep the store."
)
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

    @property
    def has_numbers(self) -> bool:
        """Whether the run got as far as an evaluation."""
        return evaluate.STAGE.name in self.shown

    def gain_over(self, store: Store, last: RunRecord | None) -> Interval | None:
        """Return the gain in win rate over the policy of another run; None where they do not compare."""
        entry = self.shown.get(compare.STAGE.name)
        before = None if last is None else result_in(store, last, compare.STAGE.name, compare.Facts)
        return None if entry is None else gain_over_last(store, self.results[entry.label], before)

    def extremes(self, store: Store) -> tuple[list[Extremes], list[str]]:
        """Return the records at the ends of h and of trust, and why a table could not be read."""
        found, missing = list[Extremes](), list[str]()
        for stage, read in ((calibrate.STAGE.name, by_factor), (value.STAGE.name, by_trust)):
            if stage not in self.shown:
                continue
            try:
                ends = read(store, self.results[self.shown[stage].label])
            except StoreError as error:
                missing.append(error.message)
            else:
                found += [ends] if ends is not None else []
        return found, missing

    def texts(self, store: Store, count: int) -> dict[str, Any]:
        """Content of ``examples.html``; the sentence says why there is none."""
        if count == 0:
            return {"examples": [], "missing_examples": HIDDEN}
        if compare.STAGE.name not in self.shown:
            return {"examples": [], "missing_examples": self.why_missing(compare.STAGE.name)}
        try:
            return {"examples": examples(store, self.results[self.shown[compare.STAGE.name].label], count), "missing_examples": ""}
        except StoreError as error:
            return {"examples": [], "missing_examples": f"{error.message}."}

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


FIRST = ("promote", "compare", "evaluate", "examples", "records", "value", "trend", "drift")
"""Sections that a reader decides by."""
LAST = ("training",)


def sections() -> list[str]:
    """Templates of the page's sections: :data:`FIRST`, the others in the order of the pipeline, the trainings together at the end."""
    others = (name for name in stages_in("stage") if name not in FIRST)
    return [f"{name}.html" for name in (*FIRST, *others, *LAST)]


def render(store: Store, run_id: str, prompts: int | None = None) -> str:
    """Render the page.

    Args:
        prompts: held-out prompts shown with their responses; None: as the run's configuration says (``report.prompts``).

    Raises:
        ReportError: the run has no manifest.
    """
    run = manifest_of(store, run_id)
    page = Page.of(store, run)
    last = last_run(store, run)
    cost = cost_of(store, run, page.results)
    shown = nights(store, [*evaluated(runs_of(store, run.project, before=run_id), SHOWN - 1), run]) if page.has_numbers else []
    texts = prompts if prompts is not None else (run.config.get("report") or {}).get("prompts", 0)
    extremes, missing = page.extremes(store)
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
        overview=overview(run, page.facts, cost, last, Evidence.of_run(store, last), page.promotion, page.gain_over(store, last)),
        trend=trend_figures(shown),
        trend_runs=len(shown),
        **page.texts(store, texts),
        extremes=extremes,
        missing_extremes=missing,
    )
