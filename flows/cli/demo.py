"""The demo's data and configuration: a known mixture, generated once, and the packaged ``demo.yaml``."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

from flows.config import RealignConfig
from flows.loading import read_yaml, validate
from infra.store import canonical_json, write_atomic

GOLDEN_RESPONSES = 1500


def demo_config(folder: Path) -> RealignConfig:
    """Write ``data.parquet`` and ``golden.parquet`` unless they are there as this version makes them; return the configuration."""
    from dora_core import testbed

    config = testbed.TestbedConfig()
    data, golden, marker = folder / "data.parquet", folder / "golden.parquet", folder / "data.json"
    code = hashlib.sha256(Path(testbed.__file__).read_bytes()).hexdigest()
    wanted = canonical_json({"testbed": config.model_dump(mode="json"), "golden": GOLDEN_RESPONSES, "code": code})
    if not (data.exists() and golden.exists() and marker.exists() and marker.read_text(encoding="utf-8") == wanted):
        known = testbed.Testbed(config)
        known.write(data)
        testbed.write_rows(known.generate_golden(GOLDEN_RESPONSES), golden)
        write_atomic(marker, wanted)
    text = (importlib.resources.files("infra") / "configs" / "demo.yaml").read_text(encoding="utf-8")
    raw, lines = read_yaml(text, "demo.yaml")
    raw["data"]["train"][0]["path"], raw["data"]["golden"][0]["path"] = str(data), str(golden)
    return validate(raw, place="demo.yaml", folder=folder, lines=lines)
