"""Facts of the classifiers: the form in which they are stored, and the numbers that may be undefined."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.runtime.spec import StageRef
from tasks.stages._classify_facts import Facts
from tests.tasks import facts

REF = StageRef(stage="classify", digest="a" * 64)


def test_stored_facts_come_back_unchanged() -> None:
    written = facts.classifier(REF, ["bot"])
    assert Facts.model_validate(written).dump() == written


def test_an_auc_may_be_undefined_and_the_decision_may_not() -> None:
    written = facts.classifier(REF, ["bot"])
    head = written["sources"]["bot"]
    assert Facts.model_validate({**written, "sources": {"bot": {**head, "auc": None}}}).sources["bot"].auc is None
    with pytest.raises(ValidationError, match="told_apart"):
        Facts.model_validate({**written, "sources": {"bot": {**head, "told_apart": None}}})
