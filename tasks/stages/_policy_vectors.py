"""Vectors of responses by the policy before alignment, for the proxy of the stages ``value`` and ``race`` (``exchange.features``).

One forward pass over the responses that make pairs, at most four of a record, sharded over actors as in ``reference``. A vector takes at
most 520 bytes, and all are in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.config.method import TextConfig
from tasks.runtime.spec import ModelSource
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import ModelWorker, WorkerArguments
from tasks.tables.rows import record_batches

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dora_core.config.execution import Execution


READ_ROWS = 4096


class VectorArguments(WorkerArguments):
    """Arguments of :class:`PolicyVectorizer`."""

    model: ModelSource
    text: TextConfig


class PolicyVectorizer(ModelWorker[VectorArguments]):
    """Maps (key, prompt, response) rows to (key, vector), of ``dora_core.selection.features.policy_vectors``."""

    def load(self) -> None:
        from dora_core.data.encoding import Encoder
        from dora_core.models.logprobs import ResponseLogps

        model, tokenizer = self.load_policy(self.arguments.model)
        self._logps, self._encoder = ResponseLogps(model), Encoder(tokenizer, self.arguments.text)
        self._pad_id = tokenizer.pad_token_id

    def __call__(self, rows: pa.Table) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        from dora_core.models.logprobs import represent_responses
        from dora_core.selection.features import policy_vectors

        pairs = zip(rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True)
        lists = [(prompt, [y for _, y in of_prompt]) for prompt, of_prompt in itertools.groupby(pairs, key=lambda pair: pair[0])]
        prompts, responses = zip(*lists, strict=True) if lists else ((), ())
        encoded = list(itertools.chain.from_iterable(self._encoder.encode_lists(prompts, responses)))
        represented = represent_responses(self._logps, encoded, self._pad_id, self.budget, self.device)
        vectors = policy_vectors(represented, np.array([one.learned for one in encoded]))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
        return pa.table({"key": rows["key"], "vector": column})


@dataclass(frozen=True)
class Vectors:
    """Vectors of the responses that make pairs: ``vector_ND`` and, by (record, place of the response), its row."""

    vector_ND: NDArray[np.float32]
    row: dict[tuple[int, int], int]

    def of(self, record_N: NDArray[np.int64], place_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Vectors of responses, (N, D)."""
        import numpy as np

        rows = [self.row[key] for key in zip(record_N.tolist(), place_N.tolist(), strict=True)]
        return self.vector_ND[rows].astype(np.float64)


def compute_vectors(
    context: StageContext,
    records: Path,
    wanted_R: NDArray[np.bool_],
    model: ModelSource | None,
    text: TextConfig | None,
    execution: Execution,
) -> Vectors:
    """Compute the vectors of the train records in ``wanted_R`` (R,), of those responses that ``_value_labels.read_texts`` chooses."""
    import numpy as np

    from tasks.runtime.shards import stream_shards

    assert model is not None and text is not None, "features of the policy need the policy"
    row = {key: i for i, (key, _, _) in enumerate(_chosen(records, wanted_R))}
    arguments = VectorArguments(store_uri=context.store.uri, execution=execution, model=model, text=text)
    tables = stream_shards(
        context,
        _tables(records, wanted_R),
        total=len(row),
        name="vectors",
        worker=partial(PolicyVectorizer, arguments),
        execution=execution,
        unit="responses",
    )
    parts = [np.stack(table["vector"].to_numpy()) for table in tables]
    return Vectors(np.concatenate(parts).astype(np.float32), row)


def _chosen(records: Path, wanted_R: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], Any, str]]:
    """((record, place), prompt, response) of every response that makes a pair."""
    from dora_core.training.alignment_data import choose_responses
    from tasks.stages._value_labels import LIST_LIMIT

    record = 0
    for batch in record_batches(records, ["prompt", "responses", "rewards"], "train"):
        for one in batch.to_pylist():
            if wanted_R[record]:
                places = choose_responses([float("nan") if reward is None else reward for reward in one["rewards"]], LIST_LIMIT)
                yield from (((record, place), one["prompt"], one["responses"][place]) for place in places)
            record += 1


def _tables(records: Path, wanted_R: NDArray[np.bool_]) -> Iterator[pa.Table]:
    import pyarrow as pa

    rows = enumerate(_chosen(records, wanted_R))
    while part := list(itertools.islice(rows, READ_ROWS)):
        keys, found = zip(*part, strict=True)
        _, prompts, responses = zip(*found, strict=True)
        yield pa.table({"key": keys, "prompt": prompts, "response": responses})
