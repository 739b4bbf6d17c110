"""Rows that are known to be good, and the check that they have arrived, whatever stood between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.problems import Reason
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.ingest import Spec, run

GOOD = 24


def good(i: int, **change: Any) -> dict[str, Any]:
    """Row ``i`` of the known good set: text that invites mistakes with encodings, lines and quoting."""
    texts = [
        "plain",
        "中a 文b",
        'a "quoted"\nsecond line',
        "\u2028\x85\x0b\x0c line breaks to some",
        "\x00\x1b[31m\x7f",
        "😀 é",
        "\\ud800",
        "NaN",
    ]
    answers = [f"{i}: {texts[i % len(texts)]}", f"{i}: {texts[(i + 3) % len(texts)]}"]
    return {"id": f"r{i}", "prompt": f"prompt {i}", "responses": answers, "rewards": [i / 8, None], "sources": ["human", "m"]} | change


ROWS = [good(i) for i in range(GOOD)]


def line(row: Any, **how: Any) -> bytes:
    return json.dumps(row, **how).encode() + b"\n"


WHOLE = {line(row).strip(): row for row in ROWS}


class Outcome:
    """What the stage made of a folder or a file."""

    def __init__(self, path: Path, store: Path, **data: Any):
        config = DataConfig(train=[{"path": str(path)}], max_bad_fraction=1.0, **data)
        spec = Spec(data=config, fingerprints=fingerprint_sources(config))
        self.facts = execute(spec, run, Store(str(store)))["facts"]
        folder = store / "ingest" / spec.digest()
        self.records = pq.read_table(folder / "records.parquet").to_pylist()
        self.quarantine = pq.read_table(folder / "quarantine.parquet").to_pylist()

    def check(self, expected: list[dict[str, Any]], bad: int) -> None:
        """``expected`` has arrived word for word and in order; ``bad`` rows are in quarantine, each with place and reason."""
        arrived = [
            {"id": r["record_id"], "prompt": r["prompt"][0]["content"], **{k: r[k] for k in ("responses", "rewards", "sources")}}
            for r in self.records
        ]
        assert arrived == expected
        places = {(entry["file"], entry["row"]) for entry in self.quarantine}
        assert len(places) == bad == self.facts["rows_bad"] == sum(self.facts["bad_by_reason"].values())
        assert self.facts["rows_in"] == len(expected) + bad
        assert all(entry["reason"] in set(Reason) and entry["detail"].isascii() for entry in self.quarantine)
