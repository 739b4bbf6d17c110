"""Facts of the calibration: the form in which they are stored."""

from __future__ import annotations

from tasks.stages._calibrate_facts import Facts
from tests.tasks import facts


def test_stored_facts_come_back_unchanged() -> None:
    written = facts.calibration()
    assert written["rows"]["in"] == 400, "the key is a keyword of Python"
    assert Facts.model_validate(written).dump() == written


def test_results_before_rows_were_counted_are_readable() -> None:
    written = facts.calibration()
    del written["rows"]
    read = Facts.model_validate(written)
    assert read.rows is None and read.dump() == written
