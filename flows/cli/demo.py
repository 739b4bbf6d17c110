"""The demo's data and configuration: a known mixture, generated once, and the packaged ``demo.yaml``."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from flows.config import RealignConfig
from flows.loading import read_yaml, validate
from infra.store import canonical_json, write_atomic


def demo_config(folder: Path) -> RealignConfig:
    """Write ``<folder>/data.parquet`` unless it is there with the same settings, and return the configuration that reads it."""
    from dora_core.testbed import Testbed, TestbedConfig

    config = TestbedConfig()
    data, marker = folder / "data.parquet", folder / "data.json"
    wanted = canonical_json(config.model_dump(mode="json"))
    if not (data.exists() and marker.exists() and marker.read_text(encoding="utf-8") == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        Testbed(config).write(data)
        write_atomic(marker, wanted)
    text = (importlib.resources.files("infra") / "configs" / "demo.yaml").read_text(encoding="utf-8")
    raw, lines = read_yaml(text, "demo.yaml")
    raw["data"]["train"][0]["path"] = str(data)
    return validate(raw, place="demo.yaml", folder=folder, lines=lines)
