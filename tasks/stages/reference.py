"""Stage ``reference``: log π_ref of every response, once.

Input: records and the starting model of the alignment. Output: ``logps.parquet`` (record_id, response_index, logp in nats, tokens and
prompt_tokens after truncation, truncated), rows in the order of records, both splits. Guarantee: the key covers weights, tokenizer,
template, truncation and rows, so a stale cache cannot be read; training asserts policy ≈ reference at its first step.

Cost: one forward pass, sharded over actors, over responses that *these weights* never scored. Other values come from the row cache
``logps/<digest>/`` (``tasks/runtime/score_cache.py``) of the same weights, tokenizer and truncation (:func:`row_cache_digest`).
Memory: texts are streamed; about 80 bytes of numbers a row.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config.method import ModelConfig, TextConfig
from infra.store.store import sha256_of
from tasks.runtime.descriptor import RowCache, Stage
from tasks.runtime.facts import ScoringFacts
from tasks.runtime.score_cache import ROW_GROUP, CachedRows, Scores, score_rows
from tasks.runtime.spec import ModelSource, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.runtime.workers import ModelWorker, WorkerArguments
from tasks.tables.artifacts import LOGPS_FILE, RECORDS_FILE, logps_schema
from tasks.tables.rows import read_index, rebatch, record_batches, responses_of, text_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "reference"
    version: ClassVar[int] = 3  # packed or padded by structure, in every dtype

    records: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig


class Facts(ScoringFacts):
    """How the rows were scored."""

    truncated: int = Field(description="Responses that did not fit, or whose prompts did not.")


class LogpArguments(WorkerArguments):
    """Arguments of :class:`LogpScorer`: name → model, or the stage that trained it.

    Attributes:
        keyed: add the column ``key``, a number that is the same for equal response ids of the first tokenizer.
    """

    models: dict[str, ModelSource]
    text: TextConfig
    keyed: bool = False


class LogpScorer(ModelWorker[LogpArguments]):
    """Scores (prompt, response) rows with one or several policies. The output has the input's other columns, ``logp_<name>``, and
    ``tokens``, ``prompt_tokens`` and ``truncated`` of the first tokenizer."""

    def load(self) -> None:
        from dora_core.data.encoding import Encoder

        self._policies = {}
        for name, source in self.arguments.models.items():
            logps, tokenizer = self.load_logps(source)
            self._policies[name] = (logps, Encoder(tokenizer, self.arguments.text), tokenizer.pad_token_id)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.models.logprobs import score_responses

        pairs = zip(rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True)
        lists = [(prompt, [y for _, y in of_prompt]) for prompt, of_prompt in itertools.groupby(pairs, key=lambda pair: pair[0])]
        prompts, responses = zip(*lists, strict=True) if lists else ((), ())
        columns: dict[str, Any] = {name: rows[name] for name in rows.column_names if name not in ("prompt", "response")}
        for name, (logps, encoder, pad_id) in self._policies.items():
            encoded = list(itertools.chain.from_iterable(encoder.encode_lists(prompts, responses)))
            scores = score_responses(logps, encoded, pad_id, self.budget, self.device)
            columns[f"logp_{name}"] = pa.array(scores, pa.float64())
            columns.setdefault("tokens", pa.array([e.learned for e in encoded], pa.int32()))
            columns.setdefault("prompt_tokens", pa.array([len(e.prompt_ids) for e in encoded], pa.int32()))
            columns.setdefault("truncated", pa.array([e.truncated for e in encoded], pa.int32()))
            if self.arguments.keyed:
                columns.setdefault("key", pa.array([_key(e.response_ids) for e in encoded], pa.int64()))
        return pa.table(columns)


def _key(ids: list[int]) -> int:
    """63 bits that differ for different ids, but for a collision of probability 1e-19."""
    digest = hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_cache_digest(spec: Spec, *, as_planned: bool = False) -> str:
    """Digest of everything besides the row that log-probabilities depend on. A trained start enters by its stage's digest; a model by
    name by its commit or the digest of its files *as they are now*, not as planned, so values of other weights are never found.

    Args:
        as_planned: use the files as the plan saw them, which gives the row cache of an earlier run.
    """
    from dora_core.models.pinning import pin

    model = spec.model if as_planned or spec.start is not None else pin(spec.model)
    weights = model.model_dump(mode="json") if spec.start is None else spec.start.model_dump()
    return sha256_of({"version": spec.version, "weights": weights, "text": spec.text.model_dump(mode="json")})


def score(spec: Spec, context: StageContext, records: Path) -> Scores:
    """``logp_reference, tokens, prompt_tokens, truncated`` of every response of both splits."""
    import pyarrow as pa

    index = read_index(records)

    def rows(positions: NDArray[np.int64]) -> Iterator[pa.Table]:
        for texts in text_rows(records, positions, plain=False):
            key = index.key_N[texts["position"].to_numpy()]
            yield pa.table({"key": key, "prompt": texts["prompt"], "response": texts["response"]})

    models = {"reference": spec.start or spec.model}
    arguments = LogpArguments(store_uri=context.store.uri, execution=spec.execution, models=models, text=spec.text)
    return score_rows(
        context,
        CachedRows(context, f"logps/{row_cache_digest(spec)}"),
        index.key_N,
        rows,
        name="logps",
        worker=partial(LogpScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.data.encoding import MUCH_CUT

    records = context.fetch(spec.records) / RECORDS_FILE
    scores = score(spec, context, records)
    schema = logps_schema()
    stop, logp, tokens, truncated = 0, 0.0, 0, 0
    with pq.ParquetWriter(context.path / LOGPS_FILE, schema, compression="zstd") as file:
        rows = (responses_of(batch) for batch in record_batches(records, ["record_id", "sources"]))
        for part in rebatch(rows, ROW_GROUP):
            start, stop = stop, stop + part.num_rows
            columns: dict[str, Any] = {name: part[name] for name in ("record_id", "response_index")} | scores.rows(start, stop)
            columns["logp"] = columns.pop("logp_reference")
            file.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
            logp += float(columns["logp"].sum())
            tokens += int(columns["tokens"].sum())
            truncated += int((columns["truncated"] > 0).sum())
    metrics: dict[str, Any] = {
        "responses": stop,
        "mean_tokens": tokens / stop,
        "logp_per_token": logp / tokens,
        "truncated_fraction": truncated / stop,
    }
    metrics |= {name: value for name, value in scores.facts.dump().items() if value is not None}
    doubts = []
    if truncated > MUCH_CUT * stop:
        limits = f"text.max_prompt_tokens = {spec.text.max_prompt_tokens}, text.max_response_tokens = {spec.text.max_response_tokens}"
        doubts = [f"{truncated / stop:.0%} of the responses, or their prompts, are longer than the limits and were cut ({limits})"]
    return StageOutput(rows=stop, metrics=metrics, facts=Facts(**scores.facts.dump(), truncated=truncated, warnings=doubts))


def _cache_name(spec: dict[str, Any], digest: str) -> str:
    planned = Spec.model_validate({name: value for name, value in spec.items() if name not in ("stage", "version")})
    return row_cache_digest(planned, as_planned=True)


STAGE = Stage(Spec, run, Facts, row_cache=RowCache("logps", _cache_name))
