"""Prompts with the responses of start and policy and the chosen one of the data: texts, shown only where the configuration asks for them.

Everything else of a page is numbers and names; texts stay in the store unless ``report.prompts`` or ``dora report --prompts`` is above 0.
The prompts are spread evenly over the difference of the mean scores of policy and start, from the largest loss to the largest win, so that
they are neither the best nor a lucky draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.tables.artifacts import RECORDS_FILE, SAMPLES_FILE, SCORES_FILE

MAX_TEXT = 3_000
"""Characters of a text on the page."""


@dataclass(frozen=True)
class Response:
    """A response of one contestant, its first sample; ``score`` None where the judge gave none."""

    name: str
    text: str
    score: float | None
    mean: float | None
    characters: int


@dataclass(frozen=True)
class Example:
    """A held-out prompt and its responses: start, policy, chosen.

    Attributes:
        difference: mean score of the policy's samples minus that of the start's.
    """

    record_id: str
    prompt: str
    difference: float
    responses: list[Response]


def examples(store: Store, comparison: StageResult[Any], count: int) -> list[Example]:
    """Read ``count`` prompts of a comparison, ordered by difference; fewer where fewer were scored.

    Raises:
        StoreError: a table is missing.
    """
    inputs = comparison.inputs
    scores = {who: _scores(_fetched(store, comparison, name)) for who, name in (("policy", "scores"), ("start", "start_scores"))}
    mean = {who: {record: _mean(values.values()) for record, values in found.items()} for who, found in scores.items()}
    both = [record for record in mean["policy"] if mean["policy"][record] is not None and mean["start"].get(record) is not None]
    differences = sorted((mean["policy"][record] - mean["start"][record], record) for record in both)  # type: ignore[operator]
    chosen = _spread(differences, count)
    wanted = [record for _, record in chosen]
    given = _records(_fetched(store, comparison, "records"), wanted)
    samples = {
        who: _samples(_fetched(store, comparison, name), wanted) for who, name in (("policy", "samples"), ("start", "start_samples"))
    }
    own = _scores(_fetched(store, comparison, "chosen_scores")) if "chosen_scores" in inputs else {}
    found = []
    for difference, record in chosen:
        sides = [_response(who, samples[who][record], scores[who][record], mean[who][record]) for who in ("start", "policy")]
        prompt, responses, best = given[record]
        if best is not None:
            score = own.get(record, {}).get(best)
            sides.append(Response("chosen", responses[best][:MAX_TEXT], score, score, len(responses[best])))
        found.append(Example(record, prompt[-MAX_TEXT:], difference, sides))
    return found


def _spread(ordered: list[tuple[float, str]], count: int) -> list[tuple[float, str]]:
    """``count`` elements at even distances, first and last among them."""
    if len(ordered) <= count:
        return ordered
    if count == 1:
        return [ordered[len(ordered) // 2]]
    return [ordered[round(place * (len(ordered) - 1) / (count - 1))] for place in range(count)]


def _fetched(store: Store, comparison: StageResult[Any], name: str) -> Path:
    ref = comparison.inputs[name]
    return store.fetch(ref.stage, ref.digest)


def _mean(values: Any) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _rows(path: Path, columns: list[str], wanted: list[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    filters = None if wanted is None else [("record_id", "in", wanted)]
    yield from pq.read_table(path, columns=columns, filters=filters).to_pylist()


def _scores(folder: Path) -> dict[str, dict[int, float | None]]:
    """Scores by record and sample; NaN, a verdict that was not reached, becomes None."""
    found: dict[str, dict[int, float | None]] = {}
    for row in _rows(folder / SCORES_FILE, ["record_id", "sample", "score"]):
        score = row["score"]
        found.setdefault(row["record_id"], {})[row["sample"]] = None if score is None or score != score else score
    return found


def _samples(folder: Path, wanted: list[str]) -> dict[str, tuple[int, str]]:
    """First sample of each record: its number and its text."""
    found: dict[str, tuple[int, str]] = {}
    for row in _rows(folder / SAMPLES_FILE, ["record_id", "sample", "response"], wanted):
        if row["record_id"] not in found or row["sample"] < found[row["record_id"]][0]:
            found[row["record_id"]] = (row["sample"], row["response"] or "")
    return found


def _records(folder: Path, wanted: list[str]) -> dict[str, tuple[str, list[str], int | None]]:
    """Prompt, responses and the place of the single best response of each record."""
    found = {}
    for row in _rows(folder / RECORDS_FILE, ["record_id", "prompt", "responses", "rewards"], wanted):
        measured = [reward for reward in row["rewards"] or [] if reward is not None and reward == reward]
        best = max(measured, default=None)
        places = [place for place, reward in enumerate(row["rewards"] or []) if reward == best and best is not None]
        found[row["record_id"]] = (_conversation(row["prompt"]), row["responses"], places[0] if len(places) == 1 else None)
    return found


def _conversation(messages: list[dict[str, str]]) -> str:
    """A single question as it is; turns of a conversation each with its role."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _response(who: str, sample: tuple[int, str], scores: dict[int, float | None], mean: float | None) -> Response:
    number, text = sample
    return Response({"policy": "new"}.get(who, who), text[:MAX_TEXT], scores.get(number), mean, len(text))
