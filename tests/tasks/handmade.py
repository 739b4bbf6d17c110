"""Finished stages whose output is chosen by a test: real files in a real store, nothing computed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.store.store import Store, sha256_of
from tasks.runtime.stage import StageRef


def finished(
    store: Store, stage: str, name: str, files: dict[str, pa.Table], spec: dict[str, Any] | None = None, facts: dict | None = None
) -> StageRef:
    """Write ``files`` as the output of a stage; ``name`` tells stages of one kind apart."""
    ref = StageRef(stage=stage, digest=sha256_of([stage, name]))
    folder = store.folder(stage, ref.digest)
    for file, table in files.items():
        pq.write_table(table, folder.path / file)
    store.mark_done(folder, {"stage": stage, "digest": ref.digest, "spec": spec or {}, "facts": facts or {}})
    return ref
