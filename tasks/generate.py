"""Stage ``generate``: responses of a policy to the prompts of one split.

Input: records, and a policy (a ``sft`` or ``align`` stage, or the configured model as it is). Output: ``samples.parquet`` (record_id,
prompt_hash, sample, response, tokens, finished), ordered as the records are and by sample number; ``tokens`` counts the
end-of-sequence token, and ``finished`` is false where ``max_new_tokens`` cut the response.
Guarantee: a response depends on (seed, prompt, sample number) alone, so neither workers, resume nor further prompts change it
(``dora_core/generation.py`` has the exception: rounding, when ``execution.batch_tokens`` changes).
Cost: one forward pass per token and batch; about 20,000 tokens a second on one core for the tiny policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from dora_core.config import GenerateConfig, ModelConfig, TextConfig
from dora_core.errors import DataError
from tasks.stage import StageContext, StageOutput, StageRef, StageSpec, local_model, main

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_PROMPTS = 64
"""Prompts per shard: few enough to share among workers; fixed, so that batches do not depend on ``execution.shard_rows``."""


class Spec(StageSpec):
    """See the module docstring. ``policy: None`` samples from ``model``."""

    stage: ClassVar[str] = "generate"

    records: StageRef
    policy: StageRef | None
    model: ModelConfig
    text: TextConfig
    generate: GenerateConfig
    split: Literal["train", "eval"] = "eval"

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if self.policy is None and self.model.is_tiny:
            raise ValueError("the tiny model exists only once it is trained: give the sft or align stage that trained it as `policy`")
        return self


class Sampler:
    """Answers (record_id, prompt, prompt_hash) rows; lives in an actor with the policy loaded. One row per prompt, lists of samples."""

    def __init__(
        self, policy: ModelConfig | StageRef, store_uri: str, text: TextConfig, generate: GenerateConfig, batch_tokens: int, gpu: bool
    ):
        import torch

        from dora_core.models import load_policy
        from dora_core.text import Encoder

        model, self._tokenizer = load_policy(local_model(policy, store_uri), torch.bfloat16 if gpu else torch.float32)
        self._model = model.eval().to("cuda" if gpu else "cpu")
        self._encoder, self._generate, self._batch_tokens = Encoder(self._tokenizer, text), generate, batch_tokens

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.generation import sample

        sampled = sample(
            self._model,
            [self._encoder.prompt(p)[0] for p in rows["prompt"].to_pylist()],
            rows["prompt_hash"].to_pylist(),
            self._generate,
            eos_id=self._tokenizer.eos_token_id,
            pad_id=self._tokenizer.pad_token_id,
            batch_tokens=self._batch_tokens,
        )
        texts = [self._tokenizer.batch_decode([s.ids for s in row], skip_special_tokens=True) for row in sampled]
        columns: dict[str, Any] = {name: rows[name] for name in ("record_id", "prompt_hash")}
        columns["response"] = pa.array(texts, pa.list_(pa.string()))
        columns["tokens"] = pa.array([[len(s.ids) for s in row] for row in sampled], pa.list_(pa.int32()))
        columns["finished"] = pa.array([[s.finished for s in row] for row in sampled], pa.list_(pa.bool_()))
        return pa.table(columns)


def prompt_rows(records: pa.Table, count: int | None) -> pa.Table:
    """The records of up to ``count`` distinct prompts, those with the smallest hash, in their order."""
    import numpy as np
    import pyarrow as pa

    hashes = records["prompt_hash"].to_numpy()
    chosen = np.unique(hashes)[:count]
    return records.filter(pa.array(np.isin(hashes, chosen)))


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tasks.shards import run_shards

    columns = ["record_id", "prompt", "prompt_hash"]
    records = pq.read_table(context.fetch(spec.records) / "records.parquet", columns=columns, filters=[("split", "=", spec.split)])
    if len(records) == 0:
        raise DataError(
            f"the {spec.split} split has no records, so there is nothing to respond to",
            hint="give more data, or change data.holdout_fraction",
        )
    rows = prompt_rows(records, spec.generate.prompts)
    sampled = run_shards(
        context,
        rows,
        name="samples",
        worker=Sampler,
        arguments={
            "policy": spec.policy or spec.model,
            "store_uri": context.store.uri,
            "text": spec.text,
            "generate": spec.generate,
            "batch_tokens": spec.execution.batch_tokens,
            "gpu": spec.execution.gpus_per_worker > 0,
        },
        execution=spec.execution.model_copy(update={"shard_rows": SHARD_PROMPTS}),
        unit="prompts",
    )
    parents = pc.list_parent_indices(sampled["response"].combine_chunks())
    table = sampled.select(["record_id", "prompt_hash"]).take(parents)
    numbers = np.tile(np.arange(spec.generate.samples, dtype=np.int32), len(sampled))
    table = table.append_column("sample", pa.array(numbers))
    for name in ("response", "tokens", "finished"):
        table = table.append_column(name, sampled[name].combine_chunks().flatten())
    pq.write_table(table, context.path / "samples.parquet", compression="zstd")
    metrics = {
        "prompts": len(pc.unique(table["prompt_hash"])),
        "samples": len(table),
        "mean_tokens": pc.mean(table["tokens"]).as_py(),
        "finished_fraction": pc.mean(table["finished"]).as_py(),
        "empty_fraction": pc.mean(pc.equal(table["response"], "")).as_py(),
    }
    return StageOutput(rows=len(table), metrics=metrics)


if __name__ == "__main__":
    main(Spec, run)
