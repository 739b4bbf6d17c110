"""Table of the ``compare`` stage as Markdown, for Prefect's artifacts and approval forms; the page has a template, ``compare.html``."""

from __future__ import annotations

from dora_core.evaluation.metrics import GroupInterval
from flows.report.evaluation_figures import opponent, wins_of
from flows.report.numbers import interval, p_value, percent
from tasks.stages._compare_facts import Facts

COLUMNS = ("against", "win", "tie", "lose", "win rate", "at equal length", "sign test p", "prompts", "worst group")


def comparison_table(facts: Facts) -> str:
    """Render one row per opponent, with intervals."""
    rows = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 2) + ("---",)]
    for name, wins in wins_of(facts).items():
        shares = (percent(share.value) for share in (wins.win, wins.tie, wins.lose))
        rates = (f"**{interval(wins.win_rate)}**", interval(wins.length_controlled), p_value(wins.sign_test_p))
        rows.append((cell(opponent(name)), *shares, *rates, str(wins.win_rate.n), cell(worst_sentence(wins.worst_group))))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"Judge: {facts.judge}. Win rate = win + half the ties; intervals are bootstrapped over prompts."])


def worst_sentence(worst: GroupInterval | None) -> str:
    """``"task math: 0.430 [0.380, 0.480]"``."""
    return "–" if worst is None else f"{worst.by} {worst.name}: {interval(worst)}"


def cell(text: str) -> str:
    """Escape Markdown in a table cell; names come from data."""
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in text)
