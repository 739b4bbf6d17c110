"""Judge ``llm``: a served model compares responses two by two, each pair in both orders (``dora_core/evaluation/llm_judge.py``).

Output besides the scores: ``votes.parquet`` (record_id, first, second, verdict, swapped_verdict), a row per compared pair: the two places,
and which of them is preferred ("first", "second", "tie", null = no verdict) in this order and in the other. ``second`` is a sample number
too, or with ``against: given`` the place of a response in its record.
Guarantee: the pairs and the words of the requests follow from prompt and responses alone; answers are kept
(``tasks/runtime/chat_requests.py``).
Cost: two requests per pair; for K responses of a record K·opponents/2 pairs with each other, K·opponents with the given ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dora_core.config.judging import LLMJudge
from dora_core.errors import DataError
from tasks.judges.base import JudgeKind, JudgeSpec, Scored
from tasks.runtime.facts import RequestFacts
from tasks.runtime.stage import StageContext
from tasks.tables.artifacts import RECORDS_FILE, VOTES_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from dora_core.evaluation.llm_judge import Verdict
    from infra.chat_client import Question

VOTES = {"record_id": "string", "first": "int32", "second": "int32", "verdict": "string", "swapped_verdict": "string"}
SWAPPED: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}


class LLMFacts(RequestFacts):
    """Statistics of the comparisons and their requests. Shares are null where no pair has two verdicts."""

    comparisons: int = Field(0, description="Pairs of responses that were compared.")
    unparsable: int = Field(0, description="Answers without a verdict.")
    position_disagreement: float | None = Field(None, description="Share of pairs whose two verdicts differ, which makes them ties.")
    tie_share: float | None = Field(None, description="Share of pairs that are ties, those included.")


@dataclass
class _Group:
    """Responses of one record: their rows in the table, sample numbers and texts, their opponents, and the ``games``: pairs of places
    in ``responses`` and ``opponents``."""

    record_id: str
    prompt: list[dict[str, str]]
    rows: list[int]
    samples: list[int]
    responses: list[str]
    opponents: list[str]
    games: list[tuple[int, int]]

    def compared(self) -> Iterator[tuple[int, int]]:
        """Yield the games of two different texts; equal texts tie without a request."""
        return ((i, j) for i, j in self.games if self.responses[i] != self.opponents[j])

    def questions(self, judge: LLMJudge) -> Iterator[Question]:
        """Yield two questions per compared game: in this order, and swapped."""
        from dora_core.data.response_turns import readable
        from dora_core.evaluation.llm_judge import judging_messages
        from infra.chat_client import Question

        sampling = {"model": judge.model, "temperature": 0.0, "max_tokens": judge.max_new_tokens, "seed": judge.seed}
        for i, j in self.compared():
            pair = readable(self.responses[i]), readable(self.opponents[j])
            for first, second in (pair, pair[::-1]):
                messages = judging_messages(self.prompt, first, second, judge.criteria)
                yield Question(f"record {self.record_id}, responses {i} and {j}", sampling | {"messages": messages})


def score(spec: JudgeSpec, context: StageContext, rows: pa.Table) -> Scored:
    """Score each response by the mean outcome of its comparisons; write ``votes.parquet``.

    Returns:
        Scores in [0, 1], NaN for a response without any verdict; and :class:`LLMFacts`.

    Raises:
        DataError: there is nothing to compare, or no answer has a verdict.
        ServiceError, ConfigError: see :func:`tasks.runtime.chat_requests.ask`.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.evaluation.llm_judge import mean_outcomes, outcome, parse_verdict
    from tasks.runtime.chat_requests import ask

    judge = spec.judge
    assert isinstance(judge, LLMJudge) and spec.execution.endpoint is not None
    mutual = judge.against == "each_other"
    groups = _groups(rows, judge, None if mutual else _given(spec, context))
    if mutual and all(len(group.rows) == 1 for group in groups):
        raise DataError(
            "every prompt has one response, and the judge compares responses with each other",
            hint="give several (generate.samples), or compare with the given responses: judge.against=given",
        )
    questions = (question for group in groups for question in group.questions(judge))
    total = sum(2 * len(list(group.compared())) for group in groups)
    asked = ask(context, spec.execution.endpoint, questions, total, unit="verdicts")
    said = [parse_verdict(answer.text) for answer in asked.answers]
    if said and not any(said):
        cut = sum(not answer.finished for answer in asked.answers)
        raise DataError(
            f"none of the {len(said)} answers of {judge.model} has a verdict; {cut} of them were cut at {judge.max_new_tokens} tokens",
            hint="raise judge.max_new_tokens for a model that reasons before its verdict, else use a model that follows instructions",
        )
    pairs = zip(said[::2], [SWAPPED[verdict] for verdict in said[1::2]], strict=True)
    scores, votes = np.full(len(rows), np.nan), list[dict[str, Any]]()
    for group in groups:
        verdicts = {game: next(pairs) for game in group.compared()}
        outcomes = [(i, j, outcome(*verdicts.get((i, j), ("tie", "tie")))) for i, j in group.games]
        scores[group.rows] = mean_outcomes(group.responses, outcomes, mutual=mutual)
        for (i, j), (verdict, swapped) in verdicts.items():
            second = group.samples[j] if mutual else j
            row = (group.record_id, group.samples[i], second, verdict, swapped)
            votes.append(dict(zip(VOTES, row, strict=True)))
    schema = pa.schema([(name, getattr(pa, type_)()) for name, type_ in VOTES.items()])
    pq.write_table(pa.Table.from_pylist(votes, schema), context.path / VOTES_FILE, compression="zstd")
    judged = [(vote["verdict"], vote["swapped_verdict"]) for vote in votes if vote["verdict"] and vote["swapped_verdict"]]
    facts = LLMFacts(
        comparisons=len(votes),
        unparsable=said.count(None),
        position_disagreement=sum(a != b for a, b in judged) / len(judged) if judged else None,
        tie_share=sum(a != b or a == "tie" for a, b in judged) / len(judged) if judged else None,
        **asked.facts.model_dump(exclude_unset=True),
    )
    return Scored(scores, facts)


def _groups(rows: pa.Table, judge: LLMJudge, given: dict[str, list[str]] | None) -> list[_Group]:
    """Group the rows by record; ``given`` None: responses of a record are compared with each other."""
    from dora_core.evaluation.llm_judge import pairs_against, pairs_among

    places = defaultdict[str, list[int]](list)
    for place, record in enumerate(rows["record_id"].to_pylist()):
        places[record].append(place)
    prompts, samples, texts = (rows[name].to_pylist() for name in ("prompt", "sample", "response"))
    groups = []
    for record, members in places.items():
        responses = [texts[place] for place in members]
        opponents = responses if given is None else given[record]
        games = pairs_among(responses, judge.opponents) if given is None else pairs_against(responses, opponents, judge.opponents)
        groups.append(_Group(record, prompts[members[0]], members, [samples[place] for place in members], responses, opponents, games))
    return groups


def _given(spec: JudgeSpec, context: StageContext) -> dict[str, list[str]]:
    """Read the responses of every record."""
    import pyarrow.parquet as pq

    records = pq.read_table(context.fetch(spec.records) / RECORDS_FILE, columns=["record_id", "responses"])
    return dict(zip(records["record_id"].to_pylist(), records["responses"].to_pylist(), strict=True))


JUDGE = JudgeKind(LLMJudge, score, facts=LLMFacts)
