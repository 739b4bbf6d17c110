"""Runs a configuration of data through the real stage, and says in short what the records say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.ingest import Spec, check_inputs, run

BEST_FIRST = ("Wipe", "Rinse", "No idea", "Burn", "Let me look")


class CaseOutcome:
    """Tables and facts of one run."""

    def __init__(self, data: Mapping[str, Any], store: Path):
        config = DataConfig.model_validate(data)
        self.spec = Spec(data=config, fingerprints=fingerprint_sources(config))
        self.lines = check_inputs(self.spec)
        self.facts = execute(self.spec, run, Store(str(store)))["facts"]
        folder = store / "ingest" / self.spec.digest()
        self.records, self.golden, self.quarantine = (
            pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("records", "golden", "quarantine")
        )

    @property
    def orders(self) -> dict[str, int]:
        """``{"Wipe>No idea": 27, "Wipe=No idea": 3}``: responses by reward, best first; ``?`` where not measured."""
        return dict(Counter(map(order_of, self.records)))

    @property
    def roles(self) -> dict[str, int]:
        return dict(Counter(" ".join(message["role"] for message in record["prompt"]) for record in self.records))

    @property
    def splits(self) -> dict[str, int]:
        return dict(Counter(record["split"] for record in self.records))

    @property
    def sources(self) -> set[tuple[str | None, ...]]:
        return {tuple(record["sources"]) for record in self.records}

    @property
    def rewards(self) -> set[tuple[float | None, ...]]:
        return {tuple(record["rewards"]) for record in self.records}


def named(text: str) -> str:
    """The beginning by which the texts of the cases are known."""
    return next((name for name in BEST_FIRST if text.lstrip().startswith(name)), text[:30])


def order_of(record: Mapping[str, Any]) -> str:
    pairs = [(reward, named(text)) for reward, text in zip(record["rewards"], record["responses"], strict=True)]
    if len(pairs) == 1:
        return f"{pairs[0][1]} {pairs[0][0]}"
    measured = sorted(((reward, name) for reward, name in pairs if reward is not None), key=lambda pair: (-pair[0], _place(pair[1])))
    text = ""
    for i, (reward, name) in enumerate(measured):
        text += ("" if i == 0 else "=" if reward == measured[i - 1][0] else ">") + name
    return text + "".join(f" ?{name}" for r, name in pairs if r is None)


def _place(name: str) -> int:
    return BEST_FIRST.index(name) if name in BEST_FIRST else len(BEST_FIRST)
