"""The policy of a run against that of the last run: difference of their win rates against the start, paired by prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dora_core.errors import StoreError
from dora_core.evaluation.metrics import Interval
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.tables.artifacts import COMPARISON_FILE

if TYPE_CHECKING:
    import pyarrow as pa

OUTCOME = "outcome_start"


def gain_over_last(store: Store, now: StageResult[Any] | None, last: StageResult[Any] | None) -> Interval | None:
    """Compute the mean of outcome now − outcome then over the prompts of two comparisons.

    Responses of the two policies are not compared with each other; both are compared with the same responses of the same start by the same
    judge.

    Returns:
        None where start, prompts or judge differ, where both are the same policy, and where a table is gone.
    """
    if now is None or last is None or now.digest == last.digest:
        return None
    if any(now.inputs.get(name) is None or now.inputs[name] != last.inputs.get(name) for name in ("start_samples", "start_scores")):
        return None
    import numpy as np

    from dora_core.evaluation.metrics import paired_difference

    try:
        tables = [_outcomes(store, result) for result in (now, last)]
    except (StoreError, FileNotFoundError):
        return None
    both = tables[0].join(tables[1], keys="record_id", join_type="inner", right_suffix="_last").sort_by("record_id")
    settings = now.payload["evaluate"]
    if both.num_rows == 0:
        return None
    columns = [both[name].to_numpy() for name in (OUTCOME, f"{OUTCOME}_last", "prompt_hash")]
    measured = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
    if not measured.any():
        return None
    outcome_P, last_P, prompt_P = (column[measured] for column in columns)
    return paired_difference(outcome_P, last_P, prompt_P, settings["bootstrap_samples"], settings["confidence"], settings["seed"])


def _outcomes(store: Store, result: StageResult[Any]) -> pa.Table:
    import pyarrow.parquet as pq

    folder = store.fetch(result.stage, result.digest)
    return pq.read_table(folder / COMPARISON_FILE, columns=["record_id", "prompt_hash", OUTCOME])
