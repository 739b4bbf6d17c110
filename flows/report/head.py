"""Head of a run's page: its state or decision as a title, the reason, and the next command.

A page shows the run's own manifest. A later run may compute the same digests and decide otherwise; this page stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flows.run_record import UNCHANGED, RunRecord, StageRecord
from infra.ray_jobs import RESUME
from infra.store.store import Store
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.stages import promote

STATES = {
    "running": "The run has not ended; this page shows what is finished.",
    "failed": "The run failed{before}.",
    "stopped": "The run was stopped{before} by a guard rail.",
    "cancelled": "The run was cancelled{before}.",
    "waiting": "The run waits for a person to approve the model.",
    "completed": "This run ends without a decision: it had no promotion stage.",
}
"""The sentence below the title of a run, by its status."""
QUOTED = ("its last lines:", "last lines of ")
"""Beginnings of the part of a hint that quotes a log."""


@dataclass(frozen=True)
class Head:
    """Head of a page.

    Attributes:
        title: the decision, or the status of a run that has not ended well or not at all; also the class of its colour.
        text: one sentence about it.
        reason: why, one sentence; empty where the text says it all.
        steps: what to do next, each a sentence or a command.
        details: the whole error, where reason and steps are a part of it only.
    """

    title: str
    text: str
    reason: str = ""
    steps: tuple[str, ...] = ()
    details: str = ""


def promotion_of(store: Store, run: RunRecord) -> promote.Facts | None:
    """Return the promotion as this run saw it.

    None if it did not get there, or if a later run has replaced what a manifest of an earlier release does not keep.
    """
    entry = next((e for e in reversed(run.stages) if e.stage == promote.STAGE.name and e.is_finished), None)
    if entry is None:
        return None
    if run.promotion is not None:
        return promote.Facts.model_validate(run.promotion)
    result = read_result(store, StageRef(stage=entry.stage, digest=entry.digest), promote.Facts) if entry.digest else None
    return result.facts if result is not None and run.decision in (None, UNCHANGED, result.facts.decision) else None


def head_of(run: RunRecord, promotion: promote.Facts | None = None) -> Head:
    """Return the head of a run.

    Args:
        promotion: as the run saw it, see :func:`promotion_of`.
    """
    if run.status == "running":
        return Head("running", STATES["running"], _progress(run.stages), (f"look again: dora report {run.run_id}", _reap()))
    if run.status == "waiting":
        return Head("waiting", STATES["waiting"], _question(promotion), tuple(_answers(run, promotion)))
    if run.status != "completed":
        before = f" after it had decided: {run.decision}" if run.decision else " before a decision; the champion stays"
        return _ended_early(run, STATES[run.status].format(before=before))
    if run.decision == UNCHANGED and promotion is not None:
        when = f" on {promotion.audit.when[:10]}" if promotion.audit else ""
        standing = f"version {promotion.version} of {promotion.model_name} was decided about{when}: {promotion.decision}"
        return Head(UNCHANGED, f"Same data, same settings, same model as before: nothing was decided anew; {standing}.")
    decided = next((name for name in promote.DECISIONS if name == run.decision), None)
    if decided is None:
        return Head("completed", STATES["completed"])
    reason = (run.remark or "") if decided != "promoted" else ""
    if not reason and promotion is not None and promotion.reasons and decided != "promoted":
        reason = promotion.reasons[0]
    return Head(decided, promote.DECISIONS[decided], reason)


def _ended_early(run: RunRecord, text: str) -> Head:
    """Head of a run that ended with an error: the first line of its message, and the hint without quoted logs."""
    message, hint = (run.error.message, run.error.hint) if run.error else ("", "")
    reason = message.strip().partition("\n")[0]
    lines = [line.strip() for line in hint.splitlines() if line.strip()]
    quoted = next((n for n, line in enumerate(lines) if line.startswith(QUOTED)), len(lines))
    steps = lines[:quoted]
    if RESUME in steps or not any(re.search(r"\bagain\b|\bdora ", step) for step in steps):
        steps = [*(step for step in steps if step != RESUME), _again(run)]
    whole = f"{message}\n\n{hint}".strip()
    details = whole if len(lines) > quoted or reason != message.strip() else ""
    return Head(run.status, text, reason, tuple(steps), details)


def _again(run: RunRecord) -> str:
    """Return how to run it again."""
    again = run.command or ("Retry on its page in Prefect" if run.links.prefect else f"dora {run.flow or 'realign'} -c FILE")
    return f"run it again, what is finished is kept: {again}"


def _reap() -> str:
    return "if its process is gone: dora reap"


def _progress(stages: list[StageRecord]) -> str:
    done = sum(stage.is_finished for stage in stages)
    now = [stage.label for stage in stages if stage.state == "running"]
    return f"{done} of {len(stages)} stages are finished" + (f"; now: {', '.join(now)}" if now else "")


def _question(promotion: promote.Facts | None) -> str:
    return "" if promotion is None else f"version {promotion.version} of {promotion.model_name} waits"


def _answers(run: RunRecord, promotion: promote.Facts | None) -> Iterator[str]:
    if run.links.prefect:
        yield "answer in the form of its page in Prefect: Resume"
    if promotion is not None:
        model = f"{promotion.model_name} {promotion.version}"
        yield f"dora promote {model} --why REASON"
        yield f"dora reject {model} --why REASON"
