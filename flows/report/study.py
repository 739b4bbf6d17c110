"""The page of one study: what was found, then every table with its figures, then the settings. Self-contained, like ``page.py``.

Nothing is estimated here: numbers and intervals are those of the ``study`` stage's facts, and ``study_findings.py`` puts them into
sentences.
"""

from __future__ import annotations

from typing import Any

from dora_core.evaluation.study_statistics import FACTOR_MEASURES, MEASURES, TABLES
from flows.report.html import inline_figures, render_template
from flows.report.page import ReportError
from flows.report.study_findings import cells_of, findings, losses_of, variant
from flows.run_record import read_record
from infra.store.store import Store

SECTIONS = {
    "pairwise": ("Pairwise losses", "Each loss on (best, worst) pairs, plain (erm) and under the robust objective."),
    "listwise": ("Listwise losses", "Each loss on whole lists of responses, plain (erm) and under the robust objective."),
    "ablation": (
        "What the parts contribute",
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
        "with the start of round 0 by the gold reward, whoever labelled the samples; differences are paired by seed and prompt.",
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
FIGURES = {"calibration": ("calibration", "against_truth")}
SHOWN = {
    "rounds": ("win_rate", "win_rate_rise", "win_rate_lift", "gold", "accuracy_gold", "kl", "tokens"),
    "confidence": ("confidence_implicit", "confidence_likelihood", "accuracy_gold", "win_rate"),
}
POLICY = ("win_rate", "win_rate_lift", "gold", "accuracy", "accuracy_gold", "kl", "tokens")
SETTINGS = {"rounds": ("round", "round"), "noise": ("label_noise", "noise"), "shifted_golden": ("golden_shift", "golden shift")}
DIGITS = {"kl": 2, "tokens": 1, "gold": 2}


def render_study(store: Store, run_id: str) -> str:
    """The whole page as text.

    Raises:
        ReportError: the run has no manifest, or is no study.
    """
    run = read_record(store, run_id)
    if run is None:
        raise ReportError(f"run {run_id!r} has no manifest in {store.uri}", hint="list the runs with a wrong id: `dora report x`")
    planned = next((s for s in run.stages if s.stage == "study"), None)
    if planned is None:
        raise ReportError(f"run {run_id!r} is no study", hint="`dora report` writes the page of a realignment")
    result = store.read_result(planned.stage, planned.digest) if planned.digest else None
    return render_template(
        "study.html",
        run=run,
        links={name: url for name, url in run.links if url and url.startswith(("http://", "https://"))},
        facts=result["facts"] if result else None,
        figures=inline_figures("study", result) if result else {},
        findings=findings(result["facts"]) if result else [],
        sections=[_section(name, letter, result["facts"]) for name, letter in zip(TABLES, "abcdefghi", strict=True)] if result else [],
        factor_measures={name: measure.title for name, measure in FACTOR_MEASURES.items()},
        measures=MEASURES,
        digits=DIGITS,
        config=_yaml(run.config),
        settings=_yaml(result["facts"]["settings"]) if result else "",
    )


def _section(name: str, letter: str, facts: dict[str, Any]) -> dict[str, Any]:
    """One table: its cells by loss, the measures shown, and the setting that varies (a field of the cell and its heading)."""
    title, text = SECTIONS[name]
    cells = cells_of(facts, name) if name != "calibration" else []
    columns = [m for m in SHOWN.get(name, POLICY) if any(m in cell["estimates"] for cell in cells)]
    groups = {loss: [(variant(c), c) for c in cells if c["params"]["loss"] == loss] for loss in losses_of(cells)}
    return {
        "name": name,
        "letter": letter,
        "title": title,
        "text": text,
        "missing": facts["missing"].get(name),
        "groups": groups,
        "columns": columns,
        "setting": SETTINGS.get(name),
        "figures": FIGURES.get(name, (name,)),
    }


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
