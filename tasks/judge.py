"""Stage ``judge``: a score for every sampled response.

Input: records (for the prompts) and a ``generate`` stage's samples. Output: ``scores.parquet`` (record_id, sample, score), in the
order of the samples. Guarantee: a score depends on its own prompt and response alone; records of other data than the judge
knows are refused, not scored. Cost: tens of microseconds per response.
"""

from __future__ import annotations

from typing import ClassVar

from dora_core.config import GoldJudge
from tasks.stage import StageContext, StageOutput, StageRef, StageSpec, main


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "judge"

    records: StageRef
    samples: StageRef
    judge: GoldJudge


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.testbed import Testbed
    from dora_core.text import plain_prompt

    samples = pq.read_table(context.fetch(spec.samples) / "samples.parquet", columns=["record_id", "sample", "response"])
    records = pq.read_table(context.fetch(spec.records) / "records.parquet", columns=["record_id", "prompt"])
    prompt_of = {i: plain_prompt(p) for i, p in zip(records["record_id"].to_pylist(), records["prompt"].to_pylist(), strict=True)}
    prompts = [prompt_of[i] for i in samples["record_id"].to_pylist()]
    testbed = Testbed(spec.judge.testbed)
    testbed.require_prompts(prompts)
    scores = np.array([testbed.gold_reward(p, r) for p, r in zip(prompts, samples["response"].to_pylist(), strict=True)])
    table = samples.select(["record_id", "sample"]).append_column("score", pa.array(scores, pa.float64()))
    pq.write_table(table, context.path / "scores.parquet", compression="zstd")
    metrics = {"mean_score": scores.mean(), "min_score": scores.min(), "max_score": scores.max()}
    return StageOutput(rows=len(table), metrics=metrics)


if __name__ == "__main__":
    main(Spec, run)
