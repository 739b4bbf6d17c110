"""The README's chapter on data: its configuration is valid, and it names every preset."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from dora_core.data.presets import registered_presets
from flows.config.models import RealignConfig

CHAPTER = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").partition("## Your data")[2].partition("\n## ")[0]


def test_the_configuration_is_valid() -> None:
    text = re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL)[0]
    config = RealignConfig.model_validate(yaml.safe_load(text))
    assert [source.shape for source in config.data.train] == [None, "ab"] and len(config.data.eval) == len(config.data.golden) == 1


def test_every_preset_is_named() -> None:
    table = CHAPTER.partition("| rows | presets |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table)) - {"bco"}
    built_in = {name for name, preset in registered_presets().items() if preset.__module__.startswith("dora_core.")}
    assert named >= built_in, f"missing in the README: {sorted(built_in - named)}"
