"""First screen of a run's page: five numbers with their intervals beside the last run's, caveats, changes, and the commands to act.

A caveat is a sentence that a reader of the verdict must not miss: a win that length explains, no gain over plain training, a group that
loses. Each follows from one interval and names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dora_core.config.twins import TWINS
from dora_core.evaluation.metrics import GroupInterval, Interval
from flows.report.cost import Cost, Hours
from flows.report.evaluation_figures import opponent
from flows.report.numbers import duration, interval
from flows.report.past import facts_in
from flows.report.setting_lines import changed_settings
from flows.run_record import UNCHANGED, RunRecord
from infra.store.store import Store
from tasks.runtime.facts import Facts
from tasks.stages import calibrate, compare, evaluate, promote, value
from tasks.stages._drift_facts import Facts as DriftFacts
from tasks.stages._evaluate_facts import TwinMeasures

Tone = Literal["good", "bad", "wait", ""]

EVEN = 0.5
"""Win rate and preference accuracy of two equal policies."""
LOW_ESS = 0.2
"""Effective sample size below which few records carry the weights."""


@dataclass(frozen=True)
class Line:
    """A number of a tile: its estimate with interval, and the last run's as text ("" without one)."""

    label: str
    value: str
    last: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Number:
    """One of the five numbers; ``missing`` says why it has no line."""

    title: str
    lines: list[Line]
    missing: str = ""


@dataclass(frozen=True)
class Caveat:
    """A sentence in colour; ``section`` is the page's section with the evidence."""

    tone: Literal["bad", "wait"]
    text: str
    section: str


@dataclass(frozen=True)
class Overview:
    """Content of ``overview.html``.

    Attributes:
        changes: settings that differ from the last run's: key → (before, now).
        reasons: reason → labels of the stages that were computed for it.
        commands: (purpose, command).
        last: the run that this one is compared with; None for the first.
    """

    numbers: list[Number]
    caveats: list[Caveat]
    changes: dict[str, tuple[str, str]]
    reasons: dict[str, list[str]]
    commands: list[tuple[str, str]]
    last: RunRecord | None


@dataclass(frozen=True)
class Evidence:
    """Facts that the numbers and caveats of a run are read from; None where the run has none."""

    comparison: compare.Facts | None = None
    evaluation: evaluate.Facts | None = None
    calibration: calibrate.Facts | None = None
    drift: DriftFacts | None = None
    value: value.Facts | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Facts]) -> Evidence:
        """From facts by stage."""
        return cls(*(facts.get(name) for name in ("compare", "evaluate", "calibrate", "drift", "value")))  # type: ignore[arg-type]

    @classmethod
    def of_run(cls, store: Store, run: RunRecord | None) -> Evidence:
        """From the store; empty without a run."""
        return cls(
            facts_in(store, run, "compare", compare.Facts),
            facts_in(store, run, "evaluate", evaluate.Facts),
            facts_in(store, run, "calibrate", calibrate.Facts),
            facts_in(store, run, "drift", DriftFacts),
            facts_in(store, run, "value", value.Facts),
        )


def overview(
    run: RunRecord,
    facts: Mapping[str, Facts],
    cost: Cost,
    last: RunRecord | None,
    before: Evidence,
    promotion: promote.Facts | None,
    gain: Interval | None = None,
) -> Overview:
    """Assemble the first screen.

    Args:
        facts: of the run, by stage.
        last: the run that it is compared with, and ``before``, the evidence of that run.
        promotion: as the run saw it.
        gain: over the last run's policy, see ``since_last.py``.
    """
    now = Evidence.of(facts)
    return Overview(
        numbers=[_wins(now, before, gain), _kinds(now, before), _gains(now, before), _kl(now, before), _cost(cost)],
        caveats=list(caveats(now)),
        changes=changed_settings(last.config, run.config) if last is not None else {},
        reasons=_reasons(run),
        commands=list(_commands(run, promotion)),
        last=last,
    )


# ------------------------------------------------------------------------------------------------------------ five numbers


def _wins(now: Evidence, before: Evidence, gain: Interval | None) -> Number:
    wins = now.comparison.wins if now.comparison else {}
    earlier = before.comparison.wins if before.comparison else {}
    lines = []
    for name in ("champion", "start"):
        if (found := wins.get(name)) is not None:
            old = earlier.get(name)
            equal = None if found.is_extrapolated else found.length_controlled
            lines.append(_line(f"against {opponent(name)}", found.win_rate, old.win_rate if old else None, EVEN))
            lines.append(_line("… at equal length", equal, old.length_controlled if old else None, EVEN))
    if gain is not None:
        lines.append(_line("gain over the last run", gain, None, 0.0, sign="+"))
    return Number("Win rate", lines, "Responses were not compared.")


def _kinds(now: Evidence, before: Evidence) -> Number:
    parts = now.evaluation.parts if now.evaluation else {}
    earlier = before.evaluation.parts if before.evaluation else {}
    lines = [
        _line(f"{name} pairs", parts[name].accuracy.policy, earlier[name].accuracy.policy if name in earlier else None, EVEN)
        for name in ("golden", "synthetic")
        if name in parts
    ]
    if not lines and "all" in parts:
        lines = [_line("all pairs", parts["all"].accuracy.policy, earlier["all"].accuracy.policy if "all" in earlier else None, EVEN)]
    return Number("Preference accuracy: golden against synthetic", lines, "No held-out prompt has a pair of responses.")


def _gains(now: Evidence, before: Evidence) -> Number:
    twins = now.evaluation.twins if now.evaluation else {}
    earlier = before.evaluation.twins if before.evaluation else {}
    lines = [
        _line(f"over {TWINS[name].title}", _gain(twins[name]), _gain(earlier[name]) if name in earlier else None, 0.0, sign="+")
        for name in TWINS
        if name in twins
    ]
    what = "Gain in win rate" if any(twin.win_rate_lift for twin in twins.values()) else "Gain in preference accuracy"
    return Number(what, lines, "No twin was trained: evaluate.twins names none.")


def _gain(twin: TwinMeasures) -> Interval | None:
    return twin.win_rate_lift or twin.accuracy_lift


def _kl(now: Evidence, before: Evidence) -> Number:
    kl, old = (one.evaluation.kl if one.evaluation else None for one in (now, before))
    lines = [Line("nats per response", interval(kl, 2), interval(old, 2) if old else "")] if kl else []
    return Number("KL to the start", lines, "It was not sampled: evaluate.kl_prompts is 0, or the run did not get there.")


def _cost(cost: Cost) -> Number:
    lines = [Line("wall time", duration(cost.wall_seconds))] if cost.wall_seconds is not None else []
    lines += [Line("reserved now", _hours(cost.now)), Line("… with cached stages", _hours(cost.whole))]
    lines += [Line("memory, one process", f"{cost.memory / 1e9:.2f} GB")] if cost.memory is not None else []
    return Number("Cost", lines)


def _hours(hours: Hours) -> str:
    return f"{hours.cpu:.2f} CPU h" + (f", {hours.gpu:.2f} GPU h" if hours.gpu else ", 0 GPU h")


def _line(label: str, now: Interval | None, last: Interval | None, even: float, *, sign: str = "") -> Line:
    """A line in the colour of its evidence: good above ``even``, bad below, waiting where the interval contains it."""
    if now is None:
        return Line(label, "no data", interval(last) if last else "", "wait")
    tone: Tone = "good" if now.low > even else "bad" if now.high < even else "wait"
    value = interval(now) if not sign else _signed(now)
    return Line(label, value, (interval(last) if not sign else _signed(last)) if last else "", tone)


def _signed(estimate: Interval) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


# ---------------------------------------------------------------------------------------------------------------- caveats


def caveats(now: Evidence) -> Iterator[Caveat]:
    """Yield the caveats of a run, the most important first."""
    if now.comparison is not None:
        yield from _length(now.comparison)
    if now.evaluation is not None:
        yield from _twins(now.evaluation)
        golden = now.evaluation.lift.start_golden
        if golden is not None and golden.high < 0:
            yield Caveat("bad", f"worse than the start on golden preferences: {_signed(golden)} ranking accuracy", "evaluation")
    yield from _groups(now)
    if now.calibration is not None and now.calibration.no_shift:
        yield Caveat("wait", "no source can be told from golden: every record has h = 1, as in plain training", "calibration")
    elif now.calibration is not None and now.calibration.ess < LOW_ESS:
        yield Caveat("wait", f"few records carry the weights: effective sample size {now.calibration.ess:.0%}", "calibration")
    if now.drift is not None and now.drift.decision in ("refit", "refuse"):
        yield Caveat("wait", f"the data moved: {now.drift.decision}, {now.drift.reason}", "drift")
    if now.value is not None:
        dropped = [name for name, source in now.value.sources.items() if source.verdict == "drop"]
        if dropped:
            yield Caveat("wait", f"labels that are worth leaving out: {', '.join(dropped)}", "value")


def _length(comparison: compare.Facts) -> Iterator[Caveat]:
    for name in ("champion", "start"):
        found = comparison.wins.get(name)
        if found is None or found.win_rate.low <= EVEN:
            continue
        if found.is_extrapolated:
            text = f"the win against {opponent(name)} may be length: no pairs of equal length"
            yield Caveat("bad", text, "others")
        elif found.length_controlled.low <= EVEN:
            text = f"the win against {opponent(name)} may be length: {interval(found.length_controlled)} at equal length"
            yield Caveat("bad", text, "others")


def _twins(evaluation: evaluate.Facts) -> Iterator[Caveat]:
    for name in ("erm", "golden_only", "golden_only_epochs"):
        gain = _gain(evaluation.twins[name]) if name in evaluation.twins else None
        if gain is None or gain.low > 0:
            continue
        if gain.high < 0:
            yield Caveat("bad", f"worse than {TWINS[name].title}: {_signed(gain)}", "evaluation")
        else:
            yield Caveat("wait", f"no gain over {TWINS[name].title} shown: {_signed(gain)}", "evaluation")
    if not evaluation.twins:
        yield Caveat("wait", "not compared with plain training: evaluate.twins names no twin", "evaluation")


def _groups(now: Evidence) -> Iterator[Caveat]:
    start = now.comparison.wins.get("start") if now.comparison else None
    found: list[tuple[GroupInterval | None, str, str]] = [
        (start.worst_group if start else None, "win rate against the start", "others"),
        (now.evaluation.worst_group if now.evaluation else None, "preference accuracy", "evaluation"),
    ]
    for group, measure, section in found:
        if group is not None and group.low < EVEN:
            tone: Literal["bad", "wait"] = "bad" if group.high < EVEN else "wait"
            yield Caveat(tone, f"worst {group.by}: {group.name}, {measure} {interval(group)}", section)


# ------------------------------------------------------------------------------------------------------ changes, commands


def _reasons(run: RunRecord) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in run.stages:
        if entry.state in ("ran", "running", "failed") and entry.reason:
            found.setdefault(entry.reason.removeprefix("runs: "), []).append(entry.label)
    return found


def _commands(run: RunRecord, promotion: promote.Facts | None) -> Iterator[tuple[str, str]]:
    """Yield the commands for the version; `dora promote` and `dora reject` of a waiting run are its next steps (``head.py``)."""
    if promotion is None or run.status not in ("completed", "waiting"):
        return
    name, version = promotion.model_name, promotion.version
    is_champion = promotion.decision == "promoted"
    if not is_champion and run.status == "completed":
        yield ("approve", f"dora promote {name} {version} --why REASON")
        if promotion.decision in ("challenger", "undecided") and run.decision != UNCHANGED:
            yield ("reject", f"dora reject {name} {version} --why REASON")
    yield ("export", f"dora model export {name}:{version} FOLDER")
    yield ("try", f"dora model chat {name}:{version}")
    if is_champion:
        yield ("roll back", f"dora rollback {name} --why REASON")
    if run.status == "completed" and run.command:
        yield ("run again", run.command)
