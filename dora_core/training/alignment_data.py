"""Training records of alignment: written once as token ids, memory-mapped by every worker, read by index.

The file is Arrow IPC, uncompressed, one row per record that can train (:func:`schema`). A worker's own memory holds offsets of the
batches and one number per record; token ids stay in the page cache, shared by all workers of a machine.

Legend: N responses of a record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dora_core.data.encoding import EncodedResponse, Encoder
from dora_core.data.unpaired import LABEL, check_unpaired
from dora_core.errors import DataError

FORMAT = 1
"""Raise it when the file's layout or meaning changes."""

UNKNOWN = "unknown"

JOINED_COLUMNS = ("row", "prompt", "responses", "rewards", "sources", "reward_kind", "logps", "factor", "label_probability")
"""Columns that :func:`write_alignment_data` reads: position in the records table, messages, lists over all responses (rewards null where
not measured, sources null where unknown), the kind of the rewards (:data:`dora_core.data.unpaired.LABEL`: an unpaired record), the
record's h, and the probability that its label is right (null, or no such column: 1). A further column ``tokens``, the number of response
tokens that each reference log-probability is the sum of, is compared with the tokens that are written."""


@dataclass(frozen=True)
class AlignmentRecord:
    """One record, its responses encoded; they share one list of prompt ids.

    Attributes:
        row: position in the records table.
        rewards: of measured responses, best first.
        factor: the record's h ≥ 0.
        sources: position in ``AlignmentData.sources`` of each response's source.
        unpaired: one response with a label, reward 1 desirable or 0 undesirable.
        label_probability: that the label (the order of the rewards) is right, in [0, 1].
    """

    row: int
    responses: list[EncodedResponse]
    rewards: list[float]
    reference_logps: list[float]
    factor: float
    sources: list[int]
    unpaired: bool = False
    label_probability: float = 1.0


def choose_responses(rewards: Sequence[float], limit: int) -> list[int]:
    """Indices of at most ``limit`` measured responses, best first: best, worst, and evenly spaced ranks between.

    Unmeasured responses (NaN) are left out: no loss may use them.
    """
    measured = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    ranked = sorted(measured, key=lambda i: -rewards[i])
    if len(ranked) <= limit:
        return ranked
    return [ranked[round(k * (len(ranked) - 1) / (limit - 1))] for k in range(limit)]


def schema(sources: Sequence[str], records: int) -> pa.Schema:
    """Columns of the file; facts about all records are in the metadata."""
    ids = pa.list_(pa.int32())
    fields = [("row", pa.int64()), ("factor", pa.float64()), ("prompt_ids", ids), ("response_ids", pa.list_(ids))]
    fields += [(name, pa.list_(pa.float64())) for name in ("rewards", "reference_logps")]
    fields += [(name, ids) for name in ("truncated", "sources")]
    fields += [("unpaired", pa.uint8()), ("label_probability", pa.float64()), ("context", pa.list_(ids))]
    return pa.schema(fields, {"sources": json.dumps(list(sources)), "records": str(records)})


@dataclass
class Cuts:
    """Counts of texts that lost tokens, among the records that can train.

    Attributes:
        responses, prompts: all of them.
        cut_responses, cut_prompts: those that lost tokens.
        cut_tokens: tokens that they lost.
        lost_system: prompts whose system message was among them.
        equal: records left out because chosen and rejected responses are the same tokens: their texts differ only in what is cut off, or
            in white space that the chat template trims. Their loss would be ln 2, without a gradient.
    """

    responses: int = 0
    prompts: int = 0
    cut_responses: int = 0
    cut_prompts: int = 0
    cut_tokens: int = 0
    lost_system: int = 0
    equal: int = 0

    def see(self, record: Sequence[EncodedResponse]) -> None:
        """Count one record."""
        prompt_cut = record[0].truncated - record[0].cut
        self.prompts += 1
        self.responses += len(record)
        self.cut_prompts += prompt_cut > 0
        self.cut_responses += sum(response.cut > 0 for response in record)
        self.cut_tokens += prompt_cut + sum(response.cut for response in record)
        self.lost_system += record[0].lost_system


def write_alignment_data(
    path: Path, joined: Iterable[pa.Table], encoder: Encoder, max_responses: int, *, sources: Iterable[str | None], records: int
) -> Cuts:
    """Choose, encode and write the records that have a strict preference or a label; the others are dropped, and so are those whose
    different responses are equal tokens (:attr:`Cuts.equal`).

    Args:
        joined: tables of :data:`JOINED_COLUMNS`, streamed; one at a time is in memory.
        max_responses: see :func:`choose_responses`.
        sources: names of all sources that occur; None counts as :data:`UNKNOWN`.
        records: rows of all tables of ``joined``.

    Raises:
        DataError: no record has a preference or a label that its tokens show; an unpaired record does not have one label.
    """
    cuts = Cuts()
    names = sorted({name or UNKNOWN for name in sources})
    code = {name: i for i, name in enumerate(names)} | {None: names.index(UNKNOWN) if UNKNOWN in names else -1}
    layout, written = schema(names, records), 0
    with pa.ipc.new_file(str(path), layout) as file:
        for table in joined:
            batch = _encode(table, encoder, max_responses, code, layout, cuts)
            if len(batch):
                file.write_batch(batch)
                written += len(batch)
    if not written and cuts.equal:
        limit = encoder.text.max_response_tokens
        raise DataError(
            f"in all {cuts.equal} training records with a preference the responses are equal tokens: they differ only beyond "
            f"text.max_response_tokens = {limit} ({cuts.cut_responses} of {cuts.responses} responses are cut)",
            hint="raise text.max_response_tokens, so that the responses of a record differ within it",
        )
    if not written:
        raise DataError(
            f"none of {records} training records has a preference: rewards are missing or all tied",
            hint="map the right column with data.train[i].columns.rewards (or ranks), or give chosen/rejected pairs "
            "or rows with one response and a label",
        )
    return cuts


def _encode(
    table: pa.Table, encoder: Encoder, max_responses: int, code: dict[str | None, int], layout: pa.Schema, cuts: Cuts
) -> pa.RecordBatch:
    rewards = [[math.nan if r is None else r for r in of_record] for of_record in table["rewards"].to_pylist()]
    chosen = [choose_responses(of_record, max_responses) for of_record in rewards]
    unpaired = [kind == LABEL for kind in table["reward_kind"].to_pylist()]
    for name, of_record, is_unpaired in zip(table["row"].to_pylist(), table["rewards"].to_pylist(), unpaired, strict=True):
        if is_unpaired:
            check_unpaired(f"in row {name}", of_record)
    kept = [
        i
        for i, (r, c, is_unpaired) in enumerate(zip(rewards, chosen, unpaired, strict=True))
        if is_unpaired or (len(c) >= 2 and r[c[0]] > r[c[-1]])
    ]
    table = table.take(pa.array(kept, pa.int64()))
    chosen, unpaired = [chosen[i] for i in kept], [unpaired[i] for i in kept]

    def picked(name: str) -> list[list[Any]]:
        return [[values[i] for i in c] for values, c in zip(table[name].to_pylist(), chosen, strict=True)]

    texts = picked("responses")
    encoded = encoder.encode_lists(table["prompt"].to_pylist(), texts)
    for record in encoded:
        cuts.see(record)
    if "tokens" in table.column_names:
        _check_tokens(table["row"].to_pylist(), encoded, picked("tokens"))
    distinct = [_distinct(record, of_record) for record, of_record in zip(encoded, texts, strict=True)]
    kept = [i for i, (places, is_unpaired) in enumerate(zip(distinct, unpaired, strict=True)) if is_unpaired or len(places) > 1]
    if len(kept) < len(encoded) or any(len(places) < len(record) for places, record in zip(distinct, encoded, strict=True)):
        cuts.equal += len(encoded) - len(kept)
        chosen = [[chosen[i][place] for place in distinct[i]] for i in kept]
        encoded = [[encoded[i][place] for place in distinct[i]] for i in kept]
        unpaired = [unpaired[i] for i in kept]
        table = table.take(pa.array(kept, pa.int64()))

    given = table["label_probability"] if "label_probability" in table.column_names else pa.chunked_array([pa.nulls(len(table))])
    probability = pc.fill_null(given.cast(pa.float64()), 1.0).combine_chunks()

    columns = {
        "row": table["row"].combine_chunks(),
        "factor": table["factor"].combine_chunks(),
        "prompt_ids": [of_record[0].prompt_ids for of_record in encoded],
        "response_ids": [[e.response_ids for e in of_record] for of_record in encoded],
        "context": [[list(chain.from_iterable(e.context)) for e in of_record] for of_record in encoded],
        "rewards": picked("rewards"),
        "reference_logps": picked("logps"),
        "truncated": [[e.truncated for e in of_record] for of_record in encoded],
        "sources": [[code[name] for name in of_record] for of_record in picked("sources")],
        "unpaired": [int(is_unpaired) for is_unpaired in unpaired],
        "label_probability": probability,
    }
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in layout], schema=layout)


def _check_tokens(rows: Sequence[int], encoded: Sequence[Sequence[EncodedResponse]], expected: Sequence[Sequence[float]]) -> None:
    """Refuse reference log-probabilities of other tokens than those that are trained on.

    Raises:
        DataError: a response has another number of tokens than its log-probability was computed for.
    """
    for row, record, counts in zip(rows, encoded, expected, strict=True):
        for response, count in zip(record, counts, strict=True):
            if response.learned != int(count):
                raise DataError(
                    f"training record {row}: its reference log-probability is that of {int(count)} response tokens, and the response has "
                    f"{response.learned}: it was computed by a release that encoded this text otherwise",
                    hint="delete the folders reference/ and logps/ of the store, and run again",
                )


def _distinct(record: Sequence[EncodedResponse], texts: Sequence[str]) -> list[int]:
    """Places of the responses, best first, without those of another text whose tokens are those of a better one."""
    first: dict[tuple[int, ...], str] = {}
    places = list[int]()
    for place, (response, text) in enumerate(zip(record, texts, strict=True)):
        if first.setdefault(tuple(response.response_ids), text) == text:
            places.append(place)
    return places


class AlignmentData:
    """The records of a file of :func:`write_alignment_data`, by index.

    Args:
        drop_hardest: share of the records, in [0, 1), that are left out: those with the lowest label probability; of equal ones the
            later records. That is Selective DPO, arXiv 2502.09650, which drops the highest loss −log q under a model of another fold: it
            selects data before training, so the threshold is the data set's and not a batch's.

    Raises:
        DataError: ``drop_hardest`` is above 0, and no record has a label probability.

    Attributes:
        sources: names of all sources of the records, sorted; :data:`UNKNOWN` for responses without one.
        dropped: records without a strict preference or label, and those that were too hard.
        unpaired: records of one labelled response.
        uncertain: records with a label probability below 1.
        tokens: int64 (len,): prompt tokens, counted once, and those of the record's responses.
        unshared_tokens: int64 (len,): the same with the prompt counted once per response.
    """

    def __init__(self, path: Path | str, drop_hardest: float = 0.0):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [_Batch(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        counts = [len(batch.row) for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        metadata = reader.schema.metadata
        self.sources: list[str] = json.loads(metadata[b"sources"])
        probability = np.concatenate([batch.label_probability for batch in self._batches])
        self._kept = _easiest(probability, drop_hardest)
        self.dropped = int(metadata[b"records"]) - len(self)
        self.unpaired = int(np.concatenate([batch.unpaired for batch in self._batches])[self._kept].sum())
        self.uncertain = int((probability[self._kept] < 1).sum())
        self.tokens, self.unshared_tokens = np.concatenate([batch.tokens() for batch in self._batches], axis=1)[:, self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> AlignmentRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = int(self._kept[index])
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._batches[number].record(place - int(self._starts[number]))


def _easiest(probability: NDArray[np.float64], drop: float) -> NDArray[np.int64]:
    """Places of the records that stay, ascending."""
    if not drop:
        return np.arange(len(probability))
    if not (probability < 1).any():
        raise DataError(
            f"align.drop_hardest: {drop:g} leaves out the records with the lowest label_probability, and none of "
            f"{len(probability)} records has one below 1",
            hint="map a column with data.train[i].columns.label_probability, or set align.drop_hardest to 0",
        )
    easy = np.argsort(-probability, kind="stable")
    return np.sort(easy[: len(probability) - int(drop * len(probability))])


class _Batch:
    """Views of one record batch's buffers; nothing is copied."""

    def __init__(self, batch: pa.RecordBatch):
        self.row, self._factor = batch["row"].to_numpy(), batch["factor"].to_numpy()
        # A file of an earlier release has no such columns, and no such records.
        names = batch.schema.names
        self.unpaired = batch["unpaired"].to_numpy() if "unpaired" in names else np.zeros(len(batch), np.uint8)
        self.label_probability = batch["label_probability"].to_numpy() if "label_probability" in names else np.ones(len(batch))
        self._prompt_at, self._prompt_ids = _list_views(batch["prompt_ids"])
        self._response_of, responses = _list_views(batch["response_ids"], nested=True)
        self._response_at, self._response_ids = _list_views(responses)
        self._context: tuple[NDArray[Any], NDArray[Any]] | None = None
        if "context" in names and len((context := _list_views(batch["context"], nested=True)[1]).values):
            self._context = _list_views(context)
        self._values = {name: _list_views(batch[name])[1] for name in ("rewards", "reference_logps", "truncated", "sources")}

    def tokens(self) -> NDArray[np.int64]:
        """(2, records): the prompt counted once, and once per response."""
        prompt, responses = np.diff(self._prompt_at).astype(np.int64), np.diff(self._response_at[self._response_of])
        return np.stack([prompt + responses, prompt * np.diff(self._response_of) + responses])

    def record(self, i: int) -> AlignmentRecord:
        first, last = self._response_of[i], self._response_of[i + 1]
        prompt_ids = self._prompt_ids[self._prompt_at[i] : self._prompt_at[i + 1]].tolist()
        at = self._response_at[first : last + 1].tolist()
        values = {name: column[first:last].tolist() for name, column in self._values.items()}
        responses = [
            EncodedResponse(prompt_ids, self._response_ids[start:stop].tolist(), truncated, self._context_of(first + place))
            for place, (start, stop, truncated) in enumerate(zip(at[:-1], at[1:], values["truncated"], strict=True))
        ]
        row, factor = int(self.row[i]), float(self._factor[i])
        unpaired, label_probability = bool(self.unpaired[i]), float(self.label_probability[i])
        numbers = values["rewards"], values["reference_logps"], factor, values["sources"]
        return AlignmentRecord(row, responses, *numbers, unpaired, label_probability)

    def _context_of(self, response: int) -> tuple[tuple[int, int], ...]:
        """Places of a response of the batch that are not learned."""
        if self._context is None:
            return ()
        starts, places = self._context
        spans = places[starts[response] : starts[response + 1]].reshape(-1, 2)
        return tuple((start, stop) for start, stop in spans.tolist())


def _list_views(lists: pa.ListArray, *, nested: bool = False) -> tuple[NDArray[Any], Any]:
    """(offsets, values) of a list array."""
    return lists.offsets.to_numpy(), lists.values if nested else lists.values.to_numpy()
