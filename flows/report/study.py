"""The page of one study: findings, then every table with its figures, then the settings. Self-contained, like ``page.py``.

Numbers and intervals come from the ``study`` stage's facts; ``study_findings.py`` words them as findings.
"""

from __future__ import annotations

from dataclasses import dataclass

from dora_core.evaluation.study_statistics import FACTOR_MEASURES, MEASURES, TABLES
from flows.report.find import ReportError, manifest_of
from flows.report.head import head_of
from flows.report.html import inline_figures, render_template, web_links, yaml_text
from flows.report.study_findings import findings, losses_of, variant
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.stages.study import STAGE, CellFacts, Facts


@dataclass(frozen=True)
class Setting:
    """A field of the cells that varies within a table, and the heading of its column."""

    field: str
    title: str


@dataclass(frozen=True)
class Section:
    """One table of the page.

    Attributes:
        missing: why the table is missing; None where it is there.
        groups: cells and their names, by loss.
        columns: measures shown.
    """

    name: str
    letter: str
    title: str
    text: str
    missing: str | None
    groups: dict[str, list[tuple[str, CellFacts]]]
    columns: list[str]
    setting: Setting | None


BASELINES = (
    "<i>golden_only</i> and <i>synthetic_only</i> learn plainly from the records of one kind alone, in as many steps as the others; "
    "<i>golden_only_epochs</i> in as many passes, hence fewer steps."
)
SECTIONS = {
    "pairwise": ("Pairwise losses", f"Each loss on (best, worst) pairs, plain (erm) and under the robust objective. {BASELINES}"),
    "listwise": ("Listwise losses", f"Each loss on whole lists of responses, plain (erm) and under the robust objective. {BASELINES}"),
    "ablation": (
        "Contribution of the parts",
        "The same loss under each objective. Factors <i>exact</i> come from the known densities in place of classifiers.",
    ),
    "lambda": (
        "Sensitivity to λ",
        "λ has the unit of h·ℓ, so a number means something for one loss only; <i>auto</i> follows the loss's scale.",
    ),
    "noise": (
        "Label noise",
        "A share of the training records has its order of rewards reversed. The samples are still judged by the gold reward.",
    ),
    "rounds": (
        "Self-training rounds",
        "Round 0 is the alignment on the given data; every round after it learns from judged samples of the last policy. Each is compared "
        "with the start of round 0 by the gold reward, whichever judge labelled the samples; differences are paired by seed and prompt.",
    ),
    "calibration": (
        "Calibration factors against the truth",
        "h of every form, raw and as it entered training, against the exact p_golden/P of every training response. The KL is that from "
        "the golden distribution to P reweighted by h; 0 means that h is right. Intervals resample seeds, then records.",
    ),
    "confidence": (
        "Does the policy's confidence follow the gold reward?",
        "Rank correlation (Spearman's ρ) with the gold reward among the held-out responses of a prompt, averaged over prompts.",
    ),
    "shifted_golden": (
        "A golden reference that is itself shifted",
        "The separate golden reference leans towards the first synthetic source, so the classifiers learn a wrong target.",
    ),
}
SHOWN = {
    "rounds": ("win_rate", "win_rate_rise", "win_rate_lift", "gold", "accuracy_gold", "kl", "tokens"),
    "confidence": ("confidence_implicit", "confidence_likelihood", "accuracy_gold", "win_rate"),
}
POLICY = ("win_rate", "win_rate_lift", "win_rate_over_golden", "gold", "accuracy", "accuracy_gold", "kl", "tokens")
SETTINGS = {
    "rounds": Setting("round", "round"),
    "noise": Setting("label_noise", "noise"),
    "shifted_golden": Setting("golden_shift", "golden shift"),
}
DIGITS = {"kl": 2, "tokens": 1, "gold": 2}


def render_study(store: Store, run_id: str) -> str:
    """Render the page.

    Raises:
        ReportError: the run has no manifest, or is not a study.
    """
    run = manifest_of(store, run_id)
    planned = next((s for s in run.stages if s.stage == STAGE.name), None)
    if planned is None:
        raise ReportError(f"run {run_id!r} is not a study", hint="`dora report` writes the page of a realignment")
    result = store.read_result(planned.stage, planned.digest) if planned.digest and planned.is_finished else None
    parsed: StageResult[Facts] | None = STAGE.parse(result) if result else None
    facts = parsed.facts if parsed else None
    return render_template(
        "study.html",
        run=run,
        head=head_of(run),
        links=web_links(run.links),
        facts=facts,
        figures=inline_figures(STAGE.name, parsed) if parsed else [],
        findings=findings(facts) if facts else [],
        sections=[_section(name, letter, facts) for name, letter in zip(TABLES, "abcdefghi", strict=True)] if facts else [],
        factor_measures={name: measure.title for name, measure in FACTOR_MEASURES.items()},
        measures=MEASURES,
        digits=DIGITS,
        config=yaml_text(run.config),
        settings=yaml_text(facts.settings.model_dump(mode="json")) if facts else "",
    )


def _section(name: str, letter: str, facts: Facts) -> Section:
    title, text = SECTIONS[name]
    cells = facts.cells_of(name) if name != "calibration" else []
    return Section(
        name=name,
        letter=letter,
        title=title,
        text=text,
        missing=facts.missing.get(name),
        groups={loss: [(variant(c), c) for c in cells if c.params.loss == loss] for loss in losses_of(cells)},
        columns=[m for m in SHOWN.get(name, POLICY) if any(m in cell.estimates for cell in cells)],
        setting=SETTINGS.get(name),
    )
