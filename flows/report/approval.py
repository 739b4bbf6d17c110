"""What a person is shown who decides about a promotion, as Markdown: for Prefect's form, its artifacts and a terminal."""

from __future__ import annotations

from typing import Any

from flows.report.comparison import cell, comparison_table
from flows.report.numbers import interval


def evidence_table(evaluation: dict[str, Any], comparison: dict[str, Any] | None) -> str:
    """Wins and losses, the gate's rules, and the two figures people ask for first.

    Args:
        evaluation, comparison: facts of the ``evaluate`` and ``compare`` stages' ``result.json``.
    """
    accuracy, kl = evaluation["parts"]["all"]["accuracy"]["policy"], evaluation["kl"]
    figures = [f"held-out preference accuracy **{interval(accuracy)}**"]
    figures += [f"KL(policy‖start) **{interval(kl)}** nats per response"] if kl else []
    parts = [comparison_table(comparison)] if comparison else ["No win rates: `compare` is off."]
    return "\n\n".join([*parts, " · ".join(figures), gate_table(evaluation["gate"])])


def gate_table(gate: dict[str, Any]) -> str:
    """One row per rule of the promotion gate."""
    rows = [f"| {'met' if rule['passed'] else '**not met**'} | {cell(rule['message'])} |" for rule in gate["rules"]]
    return "\n".join(["| gate | rule: value |", "| --- | --- |", *rows])


def decision_lines(promotion: dict[str, Any], gate: dict[str, Any] | None = None) -> list[str]:
    """The decision, its reasons and its audit, one line each.

    Args:
        promotion: facts of the ``promote`` stage's ``result.json``.
        gate: what :func:`gate_table` shows beside it, and is left out here.
    """
    elsewhere = {rule["message"] for rule in gate["rules"]} if gate else set()
    name, version = promotion["model_name"], promotion["version"]
    aliases = ", ".join(f"{alias} → {number}" for alias, number in sorted(promotion["aliases"].items())) or "none"
    lines = [f"**{promotion['decision']}**: model `{name}` version {version}; aliases: {aliases}"]
    lines += [cell(reason) for reason in promotion["reasons"] if reason not in elsewhere]
    audit = promotion.get("audit")
    if audit:
        digests = ", ".join(f"{what} `{audit[what][:12]}`" for what in ("policy", "evaluation", "config") if audit.get(what))
        lines.append(f"audit: {audit['action'].replace('_', ' ')} {audit['when']} by {cell(audit['who'])}; {digests}")
    return lines
