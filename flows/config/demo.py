"""The demo's data and configuration: a known mixture, generated once, and the packaged ``demo.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.config.loading import packaged, validate
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.config.yaml_text import Override, apply_override, read_yaml

GOLDEN_RESPONSES = 3000


def demo_config(folder: Path, rounds: int = 0, overrides: Sequence[Override] = (), paths_from: Path | None = None) -> RealignConfig:
    """Write ``data.parquet`` and ``golden.parquet`` unless they are there as this version makes them; return the configuration.

    Args:
        rounds: self-training rounds after the realignment; 0 = a realignment alone.
        overrides: replace values of the packaged file.
        paths_from: relative paths in ``overrides`` are relative to this folder; None: to ``folder``.

    Raises:
        ConfigError: as :func:`flows.config.loading.load_config`.
    """
    from dora_core.config.method import TestbedConfig
    from dora_core.testbed.mixture import materialize

    raw, lines = read_yaml(packaged("demo.yaml"), "demo.yaml")
    mixture = TestbedConfig.model_validate(raw["compare"]["judge"]["testbed"])  # judged by its own gold reward
    data, golden = materialize(mixture, GOLDEN_RESPONSES, folder)
    raw["data"]["train"][0]["path"], raw["data"]["golden"][0]["path"] = str(data), str(golden)
    if rounds:
        raw |= {"rounds": {"rounds": rounds}, "generate": {"samples": 4, "max_new_tokens": 96}}
        raw["evaluate"]["twins"] = []
    model = SelfTrainConfig if rounds else RealignConfig
    for override in overrides:
        apply_override(raw, override, model)
    return validate(raw, place="demo.yaml", folder=paths_from or folder, lines=lines, model=model)
