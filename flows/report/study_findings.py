"""Findings of a study: sentences computed from its facts; none claims more than the intervals show.

*Above* and *below*: the bootstrap intervals of two cells do not overlap, which is stricter than a paired difference that excludes 0;
*ahead of* and *behind*: the intervals overlap, and only the point estimates differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from dora_core.evaluation.metrics import estimate_text
from dora_core.evaluation.study_statistics import Estimate, separated
from tasks.stages.study import CellFacts, Facts

PAPER_ORDER = ("dora", "reweight", "dro")
"""For LIRE on HH the paper reports 84.0 / 80.8 / 65.0 % wins."""
TIED = 5e-4  # win rates that print alike


Mark = Literal["met", "broken", "open"]
Place = Literal["above", "ahead of", "level with", "behind", "below"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Finding:
    """A headline with its details; ``mark``: met = as the method promises, broken = the opposite, open = neither, or no promise."""

    mark: Mark
    headline: str
    items: tuple[str, ...] = ()


def findings(facts: Facts) -> list[Finding]:
    """All findings, in the order of the tables."""
    found = [*_against_start(facts), *_against_erm(facts), *_against_golden(facts), *_ablation(facts), *_strength(facts)]
    found += _turning_points(facts, "noise", "label_noise", "Label noise", "{:.0%}")
    found += _turning_points(facts, "shifted_golden", "golden_shift", "Shift of the golden reference", "{:g}")
    return [*found, *_rounds(facts), *_calibration(facts), *_confidence(facts)]


def variant(cell: CellFacts) -> str:
    """The method without its loss: the name of a cell within a group of one loss."""
    return cell.method.removeprefix(f"{cell.params.loss} · ")


def losses_of(cells: list[CellFacts]) -> list[str]:
    """Distinct losses in order of appearance."""
    return list(dict.fromkeys(cell.params.loss for cell in cells))


def relation(a: Estimate, b: Estimate) -> Place:
    """Where estimate a lies relative to b; see the module docstring."""
    if (where := separated(a, b)) != "overlapping":
        return where
    gap = a.value - b.value
    return "level with" if abs(gap) < TIED else "ahead of" if gap > 0 else "behind"


def _of_losses(facts: Facts) -> list[CellFacts]:
    """The cells of the two tables of losses, each once."""
    keys = (key for name in ("pairwise", "listwise") for key in facts.tables.get(name, []))
    return [facts.cells[key] for key in dict.fromkeys(keys)]


def _against_start(facts: Facts) -> Iterator[Finding]:
    """Whether training helps at all: the win rate against samples of the start; ½ means no change."""
    cells = _of_losses(facts)
    better = [c for c in cells if _win(c).low > 0.5]
    worse = [c for c in cells if _win(c).high < 0.5]
    if cells:
        mark: Mark = "met" if len(better) == len(cells) else "broken" if worse else "open"
        count = f"{len(better)} are better than their start and {len(worse)} worse"
        headline = f"Of {len(cells)} policies of different losses, {count}, intervals clear of ½"
        yield Finding(mark, headline, tuple(f"worse: {c.method}: {_shown(_win(c))}" for c in worse))


@dataclass(frozen=True)
class _Baseline:
    """A policy that the others are compared with.

    Attributes:
        title: in sentences.
        of: the cell to compare with; None where there is none.
        lift: measure of the paired difference.
    """

    title: str
    of: Callable[[CellFacts], CellFacts | None]
    lift: str


def _against_erm(facts: Facts) -> Iterator[Finding]:
    """Every robust cell of the two tables of losses against the erm cell of its loss."""
    cells = [cell for cell in _of_losses(facts) if not cell.params.is_baseline]
    return _against(cells, _Baseline("erm", facts.twin_of, "win_rate_lift"), "Above plain training (erm)")


def _against_golden(facts: Facts) -> Iterator[Finding]:
    """Every robust cell of the two tables of losses against golden records alone, in as many steps."""
    cells = [cell for cell in _of_losses(facts) if not cell.params.is_baseline and cell.params.objective != "erm"]
    return _against(cells, _Baseline("golden records alone", facts.golden_of, "win_rate_over_golden"), "Above golden records alone")


def _against(cells: list[CellFacts], baseline: _Baseline, above: str) -> Iterator[Finding]:
    title = baseline.title
    headlines: dict[str, tuple[Mark, str]] = {
        "above": ("met", above),
        "ahead": ("open", f"Ahead of {title} by the paired difference only"),
        "level": ("open", f"Not distinguishable from {title}"),
        "behind": ("open", f"Behind {title} by the paired difference only"),
        "below": ("broken", f"Below {title}"),
    }
    groups: dict[str, list[tuple[CellFacts, CellFacts]]] = {name: [] for name in headlines}
    for cell in cells:
        other = baseline.of(cell)
        if other is not None:
            where = relation(_win(cell), _win(other))
            lift = cell.estimates[baseline.lift]
            paired = "ahead" if lift.low > 0 else "behind" if lift.high < 0 else "level"
            groups[where if where in ("above", "below") else paired].append((cell, other))
    for name, compared in groups.items():
        if compared:
            mark, words = headlines[name]
            names = ", ".join(f"{c.params.loss} + {c.params.objective}" for c, _ in compared)
            yield Finding(mark, f"{words}: {names}", tuple(f"{c.method}: {_compared(c, other, baseline.lift)}" for c, other in compared))


def _ablation(facts: Facts) -> Iterator[Finding]:
    """The order of the objectives, and whether the paper's holds, among cells with factors of trained classifiers."""
    cells = [c for c in facts.cells_of("ablation") if c.params.factors != "exact"]
    for loss in losses_of(cells):
        ranked = sorted((c for c in cells if c.params.loss == loss), key=lambda c: -_win(c).value)
        order = tuple(f"{variant(c)}: {_shown(_win(c))}" for c in ranked)
        by_name = {c.params.objective: c for c in reversed(ranked)}
        if not all(name in by_name for name in PAPER_ORDER):
            yield Finding("open", f"{loss}: order of the objectives", order)
            continue
        steps = [relation(_win(by_name[a]), _win(by_name[b])) for a, b in itertools.pairwise(PAPER_ORDER)]
        holds = all(step in ("above", "ahead of") for step in steps)
        words = ", ".join(f"{a} is {step} {b}" for a, step, b in zip(PAPER_ORDER, steps, PAPER_ORDER[1:], strict=False))
        verdict = "holds" if holds else "does not hold"
        certain = " with intervals apart" if holds and all(step == "above" for step in steps) else ""
        yield Finding("met" if holds else "broken", f"{loss}: the paper's order dora > reweight > dro {verdict}{certain} ({words})", order)


def _strength(facts: Facts) -> Iterator[Finding]:
    cells = facts.cells_of("lambda")
    for loss in losses_of(cells):
        robust = [c for c in cells if c.params.loss == loss and c.params.objective != "erm"]
        if not robust:
            continue
        best = max(robust, key=lambda c: _win(c).value)
        headline = f"{loss}: best λ is {best.params.lam}, win rate {_shown(_win(best))}"
        twin = facts.twin_of(best)
        if twin is None:
            yield Finding("open", headline)
            continue
        where: dict[Place, list[str]] = {name: [] for name in PLACES}
        for cell in robust:
            where[relation(_win(cell), _win(twin))].append(cell.params.lam)
        items = tuple(f"{name} erm for λ = {', '.join(lams)}" for name, lams in where.items() if lams)
        mark: Mark = "met" if where["above"] else "broken" if len(where["below"]) == len(robust) else "open"
        yield Finding(mark, f"{headline}; erm has {_shown(_win(twin))}", items)


def _turning_points(facts: Facts, table: str, setting: str, title: str, words: str) -> Iterator[Finding]:
    """For every robust method, the first value of ``setting`` at which it loses to erm."""
    cells = facts.cells_of(table)
    for loss in losses_of(cells):
        methods: dict[str, list[tuple[CellFacts, CellFacts]]] = {}
        for cell in sorted((c for c in cells if c.params.loss == loss), key=lambda c: getattr(c.params, setting)):
            twin = facts.twin_of(cell)
            if twin is not None:
                methods.setdefault(variant(cell), []).append((cell, twin))
        for name, levels in methods.items():
            compared = [(c, relation(_win(c), _win(twin))) for c, twin in levels]
            items = tuple(f"{words.format(getattr(c.params, setting))}: {_compared(c, twin)}" for c, twin in levels)
            lost = [c for c, where in compared if where == "below"]
            behind = [c for c, where in compared if where in ("behind", "below")]
            if lost:
                yield Finding("broken", f"{title}: {loss} + {name} is below erm at {words.format(getattr(lost[0].params, setting))}", items)
            elif behind:
                at = words.format(getattr(behind[0].params, setting))
                yield Finding("open", f"{title}: {loss} + {name} is never below erm, and behind it first at {at}", items)
            else:
                yield Finding("met", f"{title}: {loss} + {name} is not behind erm at any level tried", items)


def _rounds(facts: Facts) -> Iterator[Finding]:
    """Per method: whether the win rate rises in every round, by the paired difference to the round before."""
    methods: dict[str, list[CellFacts]] = {}
    for cell in facts.cells_of("rounds"):
        if "win_rate_rise" in cell.estimates:
            methods.setdefault(cell.method, []).append(cell)
    for method, rounds in methods.items():
        rises = [(c.params.round, c.estimates["win_rate_rise"]) for c in rounds]
        items = tuple(
            f"round {c.params.round}: {_shown(_win(c))}; paired {_signed(c.estimates['win_rate_rise'])}"
            + (f"; against erm paired {_signed(c.estimates['win_rate_lift'])}" if "win_rate_lift" in c.estimates else "")
            + _guarded(c)
            for c in rounds
        )
        fell = [number for number, rise in rises if rise.high < 0]
        if all(rise.low > 0 for _, rise in rises):
            yield Finding("met", f"Rounds: {method} rises in every round", items)
        elif fell:
            yield Finding("broken", f"Rounds: {method} falls in round {', '.join(map(str, fell))}", items)
        else:
            shown = [str(number) for number, rise in rises if rise.low > 0]
            where = f"round {', '.join(shown)} only" if shown else "no round"
            yield Finding("open", f"Rounds: {method} is shown to rise in {where}", items)


def _guarded(cell: CellFacts) -> str:
    """The guard rails that would have stopped the round, and in how many of its seeds."""
    broken = [name for rules in cell.broken_rules.values() for name in rules]
    counts = ", ".join(f"{name} in {broken.count(name)}" for name in dict.fromkeys(broken))
    return f"; guard rails would stop it: {counts} of {cell.params.seeds} seeds" if broken else ""


def _calibration(facts: Facts) -> Iterator[Finding]:
    """The form closest to the truth, by relative error of the raw h from trained classifiers."""
    for shift in dict.fromkeys(row.golden_shift for row in facts.calibration):
        raw = [r for r in facts.calibration if r.densities == "classifiers" and r.used == "raw" and r.golden_shift == shift]
        if not raw:
            continue
        first, *others = sorted(raw, key=lambda r: r.estimates["error"].value)
        apart = [r.form for r in others if relation(r.estimates["error"], first.estimates["error"]) == "above"]
        certain = f"; intervals apart from {' and '.join(apart)}" if apart else "; intervals overlap"
        reference = f"With a golden reference shifted by {shift:g}, h" if shift else "h"
        items = tuple(
            f"{r.form}: error {_shown(r.estimates['error'])}, correlation {_shown(r.estimates['pearson'])}, "
            f"KL {_shown(r.estimates['kl'])} nats"
            for r in (first, *others)
        )
        mark: Mark = "met" if first.form == "mixture" and len(apart) == len(others) else "broken" if first.form != "mixture" else "open"
        yield Finding(mark, f"{reference} of form {first.form} is closest to the truth{certain}", items)


def _confidence(facts: Facts) -> Iterator[Finding]:
    """Whether robust training makes the implicit reward follow the gold reward more closely."""
    groups: dict[str, list[str]] = {}
    for cell in facts.cells_of("confidence"):
        twin = facts.twin_of(cell)
        if twin is not None and "confidence_implicit" in cell.estimates:
            ours, theirs = (c.estimates["confidence_implicit"] for c in (cell, twin))
            groups.setdefault(relation(ours, theirs), []).append(f"{cell.method}: {_shown(ours)} against {_shown(theirs)}")
    if groups:
        total = sum(map(len, groups.values()))
        better = len(groups.get("above", []))
        items = tuple(f"{where} erm: {item}" for where, items in groups.items() for item in items)
        yield Finding(
            "open", f"The implicit reward follows the gold reward more closely than erm's, intervals apart: {better} of {total}", items
        )


def _win(cell: CellFacts) -> Estimate:
    return cell.estimates["win_rate"]


def _compared(cell: CellFacts, twin: CellFacts, measure: str = "win_rate_lift") -> str:
    """Both win rates and the paired difference; a doubt where the t-interval over seeds disagrees with the bootstrap."""
    text = f"{_shown(_win(cell))} against {_shown(_win(twin))}"
    lift = cell.estimates[measure]
    excludes = lift.low > 0 or lift.high < 0
    doubt = excludes and lift.t_low <= 0 <= lift.t_high
    return f"{text}; paired {_signed(lift)}" + (", but the t-interval over seeds contains 0" if doubt else "")


def _signed(estimate: Estimate) -> str:
    return estimate_text(estimate, "+.3f")


def _shown(estimate: Estimate) -> str:
    return estimate_text(estimate, ".3f")
