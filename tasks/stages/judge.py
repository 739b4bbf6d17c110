"""Stage ``judge``: a score for every response.

Input: records, and either a ``generate`` stage's samples or, without one, the records' own responses. Output: ``scores.parquet``
(record_id, sample, score), in the order of the responses; larger is better, null without a verdict. ``sample`` is the
sample's number, or the place of the response in its record. Guarantee: a score depends on the responses of its own prompt alone; resume
and other numbers of workers do not change it.
Cost: that of the judge (``tasks/judges/``, a file per kind).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from dora_core.config.execution import endpoint_mistake
from tasks.judges.base import JudgeSpec
from tasks.judges.registry import JUDGES, facts_of_all
from tasks.runtime.descriptor import Stage
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import RECORDS_FILE, SAMPLES_FILE, SCORES_FILE
from tasks.tables.rows import responses_of

if TYPE_CHECKING:
    import pyarrow as pa


class Spec(JudgeSpec):
    """See the module docstring."""

    @model_validator(mode="after")
    def _check(self) -> Spec:
        judge, endpoint = self.judge, self.execution.endpoint
        mistakes = [JUDGES[judge.kind].lacks(self)]
        mistakes.append(endpoint_mistake(f"judge.kind={judge.kind}", judge.asks_server, "execution.endpoint.url", endpoint, may_idle=True))
        if found := [mistake for mistake in mistakes if mistake is not None]:
            raise ValueError("; ".join(found))
        return self


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = judged_rows(spec, context)
    scored = JUDGES[spec.judge.kind].score(spec, context, rows)
    scores = np.where(np.isfinite(scored.scores), scored.scores, np.nan)  # a model that overflows gives no score
    table = rows.select(["record_id", "sample"]).append_column("score", pa.array(scores, pa.float64(), from_pandas=True))
    pq.write_table(table, context.path / SCORES_FILE, compression="zstd")
    low, high = pc.min_max(table["score"]).as_py().values()
    mean = pc.mean(table["score"]).as_py()
    metrics = {} if mean is None else {"mean_score": mean, "min_score": low, "max_score": high}
    return StageOutput(rows=len(table), metrics=metrics | {"unscored": float(table["score"].null_count)}, facts=scored.facts)


def judged_rows(spec: Spec, context: StageContext) -> pa.Table:
    """One row per response: record_id, prompt (messages), prompt_hash, sample (int32), response; responses to one prompt are neighbours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = context.fetch(spec.records) / RECORDS_FILE
    if spec.samples is None:
        columns = ["record_id", "prompt", "prompt_hash", "responses"]
        rows = responses_of(pq.read_table(file, columns=columns, filters=[("split", "=", spec.split)]))
        return rows.rename_columns({"response_index": "sample"})
    samples = pq.read_table(context.fetch(spec.samples) / SAMPLES_FILE, columns=["record_id", "prompt_hash", "sample", "response"])
    records = pq.read_table(file, columns=["record_id", "prompt"])
    place_of = {record: place for place, record in enumerate(records["record_id"].to_pylist())}
    places = pa.array([place_of[record] for record in samples["record_id"].to_pylist()])
    return samples.append_column("prompt", records["prompt"].take(places))


STAGE = Stage(Spec, run, facts_of_all())
