"""Evidence and decision of a promotion as Markdown, for Prefect's approval form, its artifacts and a terminal."""

from __future__ import annotations

from flows.report.comparison import cell, comparison_table
from flows.report.numbers import interval
from tasks.stages import compare, evaluate, promote
from tasks.stages._evaluate_facts import GateResult, RuleResult


def evidence_table(evaluation: evaluate.Facts, comparison: compare.Facts | None) -> str:
    """Render wins and losses, the gate's rules, and the measures that matter most: accuracy (on pairs, and the AUC over labels) and KL."""
    whole, labels, kl = evaluation.parts.get("all"), evaluation.labels, evaluation.kl
    measures = [f"held-out preference accuracy **{interval(whole.accuracy.policy)}**"] if whole else []
    measures += [f"AUC over held-out labels **{interval(labels.auc.policy)}**"] if labels and labels.auc else []
    measures += [f"KL(policy‖start) **{interval(kl)}** nats per response"] if kl else []
    parts = [comparison_table(comparison)] if comparison else ["No win rates: `compare` is off."]
    return "\n\n".join([*parts, " · ".join(measures), gate_table(evaluation.gate)])


def gate_table(gate: GateResult) -> str:
    """Render the promotion gate: one row per rule, and per rule that had no evidence."""
    rows = [f"| {_state(rule)} | {cell(rule.reason)} |" for rule in gate.rules]
    rows += [f"| no evidence | {cell(f'{name}: {reason}')} |" for name, reason in gate.unchecked.items()]
    return "\n".join(["| gate | rule: value |", "| --- | --- |", *rows])


def _state(rule: RuleResult) -> str:
    if rule.uncertain:
        return "**cannot tell**, counts as met" if rule.passed else "**cannot tell**"
    return "met" if rule.passed else "**not met**"


def decision_lines(promotion: promote.Facts, gate: GateResult | None = None) -> list[str]:
    """Return the decision, its reasons and its audit, one line each.

    Args:
        gate: shown beside the lines by :func:`gate_table`; its rules are left out of the reasons.
    """
    elsewhere = {rule.reason for rule in gate.rules} if gate else set()
    aliases = ", ".join(f"{alias} → {number}" for alias, number in sorted(promotion.aliases.items())) or "none"
    lines = [f"**{promotion.decision}**: model `{promotion.model_name}` version {promotion.version}; aliases: {aliases}"]
    lines += [cell(reason) for reason in promotion.reasons if reason not in elsewhere]
    audit = promotion.audit
    if audit:
        digests = ", ".join(f"{name} `{digest[:12]}`" for name, digest in audit.digests.items())
        lines.append(f"audit: {audit.action.replace('_', ' ')} {audit.when} by {cell(audit.who)}; {digests}")
    return lines
