"""Stage ``replay``: the training records of a run that continues from the project's champion.

Input: the given records, and those that the champion's run was given (``ingest`` both). Output: ``records.parquet`` and
``golden.parquet`` with the schemas of ``ingest`` (train split only: held-out prompts are judged apart): every record that the champion's
run did not have, and of the others as many as make the share ``replay`` of the result, in the order of the given records. Which ones is a
hash of the prompt and of the earlier records' digest: the same inputs give the same bytes, and another night draws others.

A record is the same if prompt, responses, rewards, sources and carried columns are: a record labelled anew is new. Records that left the
data cannot be replayed. All trusted responses of ``golden.parquet`` stay. Cost: two passes over the records, streamed, and one over the
earlier ones. Memory: 8 bytes of every record.

Why a share of the result, not of the earlier records: a night then costs the same however long the history is (Ibrahim et al. 2024, arXiv
2403.08763, replay with 5–50 % of the tokens).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dora_core.errors import DataError
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import GOLDEN_FILE, RECORDS_FILE
from tasks.tables.rows import record_batches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IDENTITY = ("prompt_hash", "responses", "rewards", "sources", "extra")


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "replay"
    placement: ClassVar[Literal["job", "local"]] = "local"

    records: StageRef
    earlier: StageRef
    replay: float = Field(ge=0, le=0.9)
    golden_sources: list[str]


class Facts(BaseFacts):
    """Composition of the training records."""

    new: int = Field(description="Records that the champion's run did not have.")
    seen: int = Field(description="Records that it had.")
    replayed: int = Field(description="Of these, the ones that are trained on again.")
    golden_share: float = Field(description="Of the responses.")
    sources: dict[str, int] = Field(description="Responses by source.")


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow.parquet as pq

    from dora_core.data.records import is_golden_source

    base = context.fetch(spec.records)
    seen_R, prompt_R = compared(base / RECORDS_FILE, context.fetch(spec.earlier) / RECORDS_FILE)
    new, seen = int((~seen_R).sum()), int(seen_R.sum())
    if new == 0:
        raise DataError(
            f"none of the {seen} training records is new since the champion's run: there is nothing to continue with",
            hint="add data, or train from the base on all of it: policy.start: base",
        )
    taken_R = ~seen_R
    taken_R[replayed(prompt_R, np.flatnonzero(seen_R), new, spec)] = True
    start, sources = 0, Counter[str | None]()
    with pq.ParquetWriter(context.path / RECORDS_FILE, pq.read_schema(base / RECORDS_FILE), compression="zstd") as records:
        for batch in record_batches(base / RECORDS_FILE, pq.read_schema(base / RECORDS_FILE).names, "train"):
            rows = batch.take(np.flatnonzero(taken_R[start : start + len(batch)]))
            sources.update(source for of_record in rows["sources"].to_pylist() for source in of_record)
            records.write_table(rows)
            start += len(batch)
            context.progress(start, len(taken_R), "records")
    shutil.copyfile(base / GOLDEN_FILE, context.path / GOLDEN_FILE)
    again, responses = int(taken_R.sum()) - new, sources.total()
    golden = sum(count for name, count in sources.items() if name is not None and is_golden_source(name, spec.golden_sources))
    facts = Facts(
        new=new,
        seen=seen,
        replayed=again,
        golden_share=golden / responses if responses else 0.0,
        sources={name or "(unknown)": count for name, count in sorted(sources.items(), key=lambda item: item[0] or "")},
    )
    return StageOutput(rows=new + again, metrics={"new": new, "replayed": again, "golden_share": facts.golden_share}, facts=facts)


def replayed(prompt_R: NDArray[np.uint64], pool: NDArray[np.int64], new: int, spec: Spec) -> NDArray[np.int64]:
    """The positions of ``pool`` that are trained on again: those of the smallest keys, r/(1 − r) of the number of new records."""
    import numpy as np

    from dora_core.data.records import shuffle_key

    number = min(len(pool), round(spec.replay / (1 - spec.replay) * new))
    key = shuffle_key(prompt_R[pool], int(spec.earlier.digest[:8], 16))
    chosen: NDArray[np.int64] = pool[np.argsort(key, kind="stable")[:number]]
    return chosen


def compared(records: Path, earlier: Path) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Whether each train record was among the earlier ones, and the hash of its prompt."""
    import numpy as np

    before = np.fromiter(_identities(earlier), np.uint64)
    now = np.fromiter(_identities(records), np.uint64)
    prompts = [batch["prompt_hash"].to_numpy() for batch in record_batches(records, ["prompt_hash"], "train")]
    return np.isin(now, before), np.concatenate([np.empty(0, np.uint64), *prompts])


def _identities(records: Path) -> Iterator[int]:
    for batch in record_batches(records, list(IDENTITY), "train"):
        for row in batch.to_pylist():
            text = json.dumps([row[name] for name in IDENTITY], separators=(",", ":"))
            yield int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def headline(result: StageResult[Any]) -> str:
    facts = result.facts
    return f"{facts.new} new records, {facts.replayed} of {facts.seen} earlier ones again"


STAGE = Stage(Spec, run, Facts, headline=headline, tracked=("new", "replayed"))
