"""Settings of a run's page."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flows.config.models import RealignConfig
from flows.config.report_page import ReportConfig

DATA = {"data": {"train": [{"path": "prefs.jsonl"}]}}


def test_no_text_is_shown_unless_asked_for() -> None:
    config = RealignConfig.model_validate(DATA)
    assert config.report.prompts == 0 and "report" not in config.model_dump(mode="json"), "manifests of earlier releases stay equal"
    shown = RealignConfig.model_validate(DATA | {"report": {"prompts": 6}})
    assert shown.model_dump(mode="json")["report"] == {"prompts": 6}


@pytest.mark.parametrize("prompts", [-1, 51])
def test_a_page_is_no_copy_of_the_data(prompts: int) -> None:
    with pytest.raises(ValidationError):
        ReportConfig(prompts=prompts)
