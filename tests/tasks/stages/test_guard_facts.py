"""Facts of the guard: the form in which they are stored; a rule that was not judged has no verdict."""

from __future__ import annotations

from tasks.stages._guard_facts import Facts
from tests.tasks import facts

BROKEN = {"name": "kl", "value": 60.0, "threshold": 50.0, "passed": False, "message": "KL is 60"}
UNJUDGED = {"name": "ess", "passed": None, "message": "not judged"}


def test_stored_facts_come_back_unchanged() -> None:
    written = facts.guarded([BROKEN, UNJUDGED])
    read = Facts.model_validate(written)
    assert read.dump() == written
    assert read.stop is not None and [rule.passed for rule in read.rules] == [False, None]
