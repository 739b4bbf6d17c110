"""Lines to copy are read again as the same values."""

from __future__ import annotations

import shlex

import yaml

from flows.config.yaml_text import apply_override, parse_override, read_yaml
from flows.report.setting_lines import options_text, values_yaml

VALUES = {"align.objective.lambda": 0.3, "align.loss": {"name": "dpo", "beta": 0.05}, "calibration.temper": "auto", "sft.enabled": True}


def test_options_and_yaml_give_the_values() -> None:
    words = shlex.split(options_text(VALUES))
    assert words[::2] == ["--set"] * 4
    data: dict[str, object] = {}
    for assignment in words[1::2]:
        apply_override(data, parse_override(assignment))
    expected = {
        "align": {"objective": {"lambda": 0.3}, "loss": {"name": "dpo", "beta": 0.05}},
        "calibration": {"temper": "auto"},
        "sft": {"enabled": True},
    }
    assert data == expected == yaml.safe_load(values_yaml(VALUES)) == read_yaml(values_yaml(VALUES), "lines")[0]
