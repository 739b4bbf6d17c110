"""Stage ``generate``: responses of a policy, or of a served model, to the prompts of one split.

Input: records, and a source of responses: a ``sft`` or ``align`` stage, the configured model as it is, or ``generate.served_model`` behind
``execution.endpoint``. Output: ``samples.parquet`` (record_id, prompt_hash, sample, response, tokens, finished), ordered as the records
are and by sample number; ``tokens`` counts the end token (null where a server reports no usage), and ``finished`` is false
where ``max_new_tokens`` cut the response.
Guarantee: a response depends on (seed, prompt, sample number) alone, so neither workers, resume nor further prompts change it
(``dora_core/models/generation.py`` has the exception: rounding, when ``execution.batch_tokens`` changes). A server gets the prompt's
messages unchanged and a seed of that triple. It may ignore the seed, but a stage never sends one request twice after an answer
(``tasks/runtime/chat_requests.py``).
Cost: one forward pass per token and batch; about 20,000 tokens a second on one core for the tiny policy. A server: one request a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from dora_core.config.execution import endpoint_mistake
from dora_core.config.method import GenerateConfig, ModelConfig, TextConfig
from dora_core.errors import DataError
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import RequestFacts
from tasks.runtime.spec import ModelSource, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.runtime.workers import ModelWorker, WorkerArguments
from tasks.tables.artifacts import RECORDS_FILE, SAMPLES_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from dora_core.data.records import Message

SHARD_PROMPTS = 64
"""Prompts per shard: few enough to share among workers; fixed, so that batches do not depend on ``execution.shard_rows``."""


class Spec(StageSpec):
    """See the module docstring. ``policy: None`` samples from ``model``, or from the endpoint's served model."""

    stage: ClassVar[str] = "generate"
    version: ClassVar[int] = 2  # fewer prompts: drawn by seed; tokens may be null

    records: StageRef
    policy: StageRef | None
    model: ModelConfig
    text: TextConfig
    generate: GenerateConfig
    split: Literal["train", "eval"] = "eval"

    @model_validator(mode="after")
    def _check(self) -> Spec:
        served, setting = self.generate.served_model, f"generate.served_model={self.generate.served_model or 'null'}"
        if mistake := endpoint_mistake(setting, served is not None, "execution.endpoint.url", self.execution.endpoint):
            raise ValueError(mistake)
        if served is not None and self.policy is not None:
            raise ValueError(f"either the served model {served!r} responds or the policy: leave one out")
        if served is None and self.policy is None and self.model.is_tiny:
            raise ValueError(
                "no trained model is named, and the tiny model exists only once it is trained: give the sft or align stage as `policy`"
            )
        return self


class SampleArguments(WorkerArguments):
    """Arguments of :class:`Sampler`."""

    policy: ModelSource
    text: TextConfig
    generate: GenerateConfig


class Sampler(ModelWorker[SampleArguments]):
    """Samples lists of responses to (record_id, prompt, prompt_hash) rows."""

    def load(self) -> None:
        from dora_core.data.encoding import Encoder

        self._model, self._tokenizer = self.load_policy(self.arguments.policy)
        self._encoder = Encoder(self._tokenizer, self.arguments.text)
        self._ends = self._encoder.ends(self._model.generation_config)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.models.generation import sample

        sampled = sample(
            self._model,
            [prompt.ids for prompt in self._encoder.prompts(rows["prompt"].to_pylist())],
            rows["prompt_hash"].to_pylist(),
            self.arguments.generate,
            eos_id=self._ends,
            pad_id=self._tokenizer.pad_token_id,
            batch_tokens=self.budget,
        )
        texts = [self._encoder.decode([s.ids for s in row], self._ends) for row in sampled]
        columns = {
            "response": pa.array(texts, pa.list_(pa.string())),
            "tokens": pa.array([[len(s.ids) for s in row] for row in sampled], pa.list_(pa.int32())),
            "finished": pa.array([[s.finished for s in row] for row in sampled], pa.list_(pa.bool_())),
        }
        return pa.table(columns)


def prompt_rows(records: pa.Table, count: int | None, seed: int) -> pa.Table:
    """Records of up to ``count`` distinct prompts, in their order; ``seed`` selects the random draw."""
    import numpy as np
    import pyarrow as pa

    from dora_core.data.records import shuffle_key

    if count is None:
        return records
    hashes = records["prompt_hash"].to_numpy()
    distinct = np.unique(hashes)
    chosen = distinct[np.argsort(shuffle_key(distinct, seed))[:count]]
    return records.filter(pa.array(np.isin(hashes, chosen)))


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["record_id", "prompt", "prompt_hash"]
    records = pq.read_table(context.fetch(spec.records) / RECORDS_FILE, columns=columns, filters=[("split", "=", spec.split)])
    if len(records) == 0:
        raise DataError(
            f"the {spec.split} split has no records, so there is nothing to respond to",
            hint="give more data, or change data.holdout_fraction",
        )
    # Held-out prompts do not depend on the seed: policies that are sampled with different ones are compared on the same prompts.
    rows = prompt_rows(records, spec.generate.prompts, spec.generate.seed if spec.split == "train" else 0)
    served = spec.generate.served_model is not None
    table, facts = _requested(spec, context, rows) if served else (_sampled(spec, context, rows), RequestFacts())
    pq.write_table(table, context.path / SAMPLES_FILE, compression="zstd")
    metrics = {
        "prompts": len(pc.unique(table["prompt_hash"])),
        "samples": len(table),
        "finished_fraction": pc.mean(table["finished"]).as_py(),
        "empty_fraction": pc.mean(pc.equal(table["response"], "")).as_py(),
    }
    mean_tokens = pc.mean(table["tokens"]).as_py()
    return StageOutput(rows=len(table), metrics=metrics if mean_tokens is None else metrics | {"mean_tokens": mean_tokens}, facts=facts)


def _sampled(spec: Spec, context: StageContext, rows: pa.Table) -> pa.Table:
    """Sample the output's table from the policy."""
    from tasks.runtime.shards import run_shards

    arguments = SampleArguments(
        store_uri=context.store.uri,
        execution=spec.execution,
        policy=spec.policy or spec.model,
        text=spec.text,
        generate=spec.generate,
    )
    sampled = run_shards(
        context,
        rows,
        name="samples",
        worker=partial(Sampler, arguments),
        execution=spec.execution.model_copy(update={"shard_rows": SHARD_PROMPTS}),
        unit="prompts",
    )
    columns = {name: sampled[name].combine_chunks().flatten() for name in sampled.column_names}
    return _samples_table(rows, spec.generate.samples, columns)


def _requested(spec: Spec, context: StageContext, rows: pa.Table) -> tuple[pa.Table, RequestFacts]:
    """Request the output's table from the endpoint; with statistics of the requests."""
    import pyarrow as pa

    from infra.chat_client import Question
    from tasks.runtime.chat_requests import ask

    generate = spec.generate
    assert spec.execution.endpoint is not None
    sampling = {
        "model": generate.served_model,
        "temperature": generate.temperature,
        "top_p": generate.top_p,
        "max_tokens": generate.max_new_tokens,
    }
    questions = (
        Question(
            f"record {row['record_id']}, sample {sample}",
            sampling | _asked(row["prompt"]) | {"seed": sample_seed(generate.seed, row["prompt_hash"], sample)},
        )
        for row in rows.to_pylist()
        for sample in range(generate.samples)
    )
    asked = ask(context, spec.execution.endpoint, questions, len(rows) * generate.samples, unit="responses")
    columns = {
        "response": pa.array([answer.text for answer in asked.answers], pa.string()),
        "tokens": pa.array([answer.tokens for answer in asked.answers], pa.int32()),
        "finished": pa.array([answer.finished for answer in asked.answers], pa.bool_()),
    }
    return _samples_table(rows, generate.samples, columns), asked.facts


def _asked(prompt: Sequence[Message]) -> dict[str, Any]:
    """The part of a request that the prompt decides."""
    from dora_core.data.encoding import chat_turns

    turns, tools = chat_turns(prompt)
    return {"messages": turns} | ({"tools": tools} if tools else {})


def sample_seed(seed: int, prompt_hash: int, sample: int) -> int:
    """Seed sent for one response: 31 bits, because servers accept different ranges."""
    digest = hashlib.blake2b(f"{seed}/{prompt_hash}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _samples_table(rows: pa.Table, samples: int, columns: dict[str, pa.Array]) -> pa.Table:
    """Prepend to ``columns`` the prompts' rows, ``samples`` times each, and sample numbers."""
    import numpy as np
    import pyarrow as pa

    parents = np.repeat(np.arange(len(rows)), samples)
    table = rows.select(["record_id", "prompt_hash"]).take(parents)
    table = table.append_column("sample", pa.array(np.tile(np.arange(samples, dtype=np.int32), len(rows))))
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def headline(result: StageResult[RequestFacts]) -> str:
    return f"{result.metrics['samples']:.0f} responses to {result.metrics['prompts']:.0f} prompts"


STAGE = Stage(Spec, run, RequestFacts, headline=headline)
