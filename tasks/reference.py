"""Stage ``reference``: log π_ref of every response, once.

Input: records and the model alignment will start from. Output: ``logps.parquet`` (record_id, response_index, logp in nats, tokens)
for both splits. Guarantee: the key covers weights, tokenizer, template, truncation and rows, so a stale cache cannot be
read; training asserts policy ≈ reference at its first step. Cost: one forward pass over all responses, sharded over actors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dora_core.config import ModelConfig, TextConfig
from tasks.stage import StageContext, StageOutput, StageRef, StageSpec, main

if TYPE_CHECKING:
    import pyarrow as pa


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "reference"

    records: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig


class LogpScorer:
    """Scores (prompt, response) rows with one or several policies; lives in an actor, loads each model once.

    Args:
        models: name → model; the output has columns ``logp_<name>``, and ``tokens`` and ``truncated`` of the first tokenizer.
    """

    def __init__(self, models: dict[str, ModelConfig], text: TextConfig, batch_tokens: int, gpu: bool):
        import torch

        from dora_core.logprobs import ResponseLogps
        from dora_core.models import load_policy
        from dora_core.text import Encoder

        self._device = torch.device("cuda" if gpu else "cpu")
        self._budget = batch_tokens
        dtype = torch.bfloat16 if gpu else torch.float32
        self._policies = {}
        for name, source in models.items():
            model, tokenizer = load_policy(source, dtype)
            self._policies[name] = (ResponseLogps(model.eval().to(self._device)), Encoder(tokenizer, text), tokenizer.pad_token_id)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.logprobs import score_responses

        prompts, responses = rows["prompt"].to_pylist(), rows["response"].to_pylist()
        columns: dict[str, Any] = {"record_id": rows["record_id"], "response_index": rows["response_index"]}
        for name, (logps, encoder, pad_id) in self._policies.items():
            encoded = [encoder.encode(p, r) for p, r in zip(prompts, responses, strict=True)]
            scores = score_responses(logps, encoded, pad_id, self._budget, self._device)
            columns[f"logp_{name}"] = pa.array(scores, pa.float64())
            columns.setdefault("tokens", pa.array([len(e.response_ids) for e in encoded], pa.int32()))
            columns.setdefault("truncated", pa.array([e.truncated for e in encoded], pa.int32()))
        return pa.table(columns)


def response_rows(records: pa.Table) -> pa.Table:
    """One row per response: record_id, response_index, prompt, response."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    responses = records["responses"].combine_chunks()
    parents = pc.list_parent_indices(responses)
    offsets = responses.offsets.to_numpy() - responses.offsets[0].as_py()
    index = np.arange(len(parents)) - np.repeat(offsets[:-1], np.diff(offsets))
    return pa.table(
        {
            "record_id": records["record_id"].combine_chunks().take(parents),
            "response_index": pa.array(index, pa.int32()),
            "prompt": records["prompt"].combine_chunks().take(parents),
            "response": responses.flatten(),
        }
    )


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tasks.shards import run_shards
    from tasks.trainer import starting_model

    records = pq.read_table(context.fetch(spec.records) / "records.parquet", columns=["record_id", "prompt", "responses"])
    arguments = {
        "models": {"reference": starting_model(context, spec.start, spec.model)},
        "text": spec.text,
        "batch_tokens": spec.execution.batch_tokens,
        "gpu": spec.execution.gpus_per_worker > 0,
    }
    scored = run_shards(
        context,
        response_rows(records),
        name="logps",
        worker=LogpScorer,
        arguments=arguments,
        execution=spec.execution,
        unit="responses",
    )
    table = scored.rename_columns({"logp_reference": "logp"})
    pq.write_table(table, context.path / "logps.parquet", compression="zstd")
    truncated = pc.sum(pc.greater(table["truncated"], 0)).as_py() or 0
    metrics = {
        "responses": len(table),
        "mean_tokens": pc.mean(table["tokens"]).as_py(),
        "logp_per_token": pc.sum(table["logp"]).as_py() / pc.sum(table["tokens"]).as_py(),
        "truncated_fraction": truncated / len(table),
    }
    return StageOutput(rows=len(table), metrics=metrics, facts={"truncated": truncated})


if __name__ == "__main__":
    main(Spec, run)
