"""Suspicion rules: signs in the data as a whole that it is not what it seems. Start reading at ``base.py``; one file per rule."""

from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen, Suspicion, refuse, rules

__all__ = ["EXAMPLES", "Example", "Finding", "Rule", "Seen", "Suspicion", "refuse", "rules"]
