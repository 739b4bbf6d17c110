"""The demo's data and configuration: a known mixture, generated once, and the packaged ``demo.yaml``."""

from __future__ import annotations

from pathlib import Path

from flows.config import RealignConfig
from flows.loading import packaged, validate
from flows.reading import read_yaml

GOLDEN_RESPONSES = 1500


def demo_config(folder: Path) -> RealignConfig:
    """Write ``data.parquet`` and ``golden.parquet`` unless they are there as this version makes them; return the configuration."""
    from dora_core.testbed import TestbedConfig, materialize

    data, golden = materialize(TestbedConfig(), GOLDEN_RESPONSES, folder)
    raw, lines = read_yaml(packaged("demo.yaml"), "demo.yaml")
    raw["data"]["train"][0]["path"], raw["data"]["golden"][0]["path"] = str(data), str(golden)
    return validate(raw, place="demo.yaml", folder=folder, lines=lines)
