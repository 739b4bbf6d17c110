"""Stage ``compare``: the policy's responses to held-out prompts against the start's, the champion's, the twins' and the chosen ones.

Input: records, and per contestant the samples and their scores, all from one judge. The opponent *chosen* is each record's best response
by its measured reward, with its score (a record without measured rewards, or with two best responses, is left out and counted, and so is
an unpaired record whose one response has the label undesirable). Output:
``comparison.parquet`` (one row per held-out record of the policy: record_id, prompt_hash, task, source, and per opponent win, tie, lose,
outcome = win + ½ tie, and mean lengths), no texts; in the facts every measure with its interval.

All pairs of a policy's and an opponent's response are compared (``dora_core/evaluation/winrate.py``); a pair without both scores is left
out and counted. A record counts for the source of its best response (of all its responses where no reward is measured), and for
``(several)`` where these have several sources. Lengths are tokens where every response has a token count, else characters; against
*chosen* always characters.
Guarantee: the same inputs give the same bytes. Cost: seconds; no model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.method import EvaluateConfig
from dora_core.data.record_counts import UNKNOWN
from dora_core.errors import DataError
from dora_core.evaluation.metrics import Interval, estimate_text
from dora_core.evaluation.winrate import Outcomes
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._compare_facts import Facts as Facts
from tasks.stages._compare_facts import Lengths, Wins
from tasks.tables.artifacts import COMPARISON_FILE, RECORDS_FILE

if TYPE_CHECKING:
    import numpy as np

SEVERAL = "(several)"
KEYS = ["record_id", "sample"]


class Spec(StageSpec):
    """See the module docstring.

    Attributes:
        scores, start_scores, champion_scores: ``judge`` stages over the samples beside them.
        chosen_scores: a ``judge`` stage over the held-out records' own responses.
    """

    stage: ClassVar[str] = "compare"
    version: ClassVar[int] = 2  # pairs of near-equal length
    placement: ClassVar[Literal["job", "local"]] = "local"

    records: StageRef
    samples: StageRef
    scores: StageRef
    start_samples: StageRef
    start_scores: StageRef
    champion_samples: StageRef | None = None
    champion_scores: StageRef | None = None
    twin_samples: dict[str, StageRef] = Field(default_factory=dict)
    twin_scores: dict[str, StageRef] = Field(default_factory=dict)
    chosen_scores: StageRef | None = None
    evaluate: EvaluateConfig
    golden_sources: list[str]

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if (self.champion_samples is None) != (self.champion_scores is None):
            raise ValueError("the champion takes part with its samples and their scores: give both or neither")
        if self.twin_samples.keys() != self.twin_scores.keys():
            raise ValueError("a twin takes part with its samples and their scores: give both or neither")
        return self

    def all_scores(self) -> list[StageRef]:
        single = (self.scores, self.start_scores, self.champion_scores, self.chosen_scores)
        return [ref for ref in (*single, *self.twin_scores.values()) if ref is not None]


@dataclass(frozen=True)
class Side:
    """Judged responses of one contestant to R records; NaN where a record has fewer than N.

    Attributes:
        record_R: positions of the records, ascending.
        score_RN: NaN also where the judge reached no verdict.
        characters_RN: lengths.
        tokens_RN: lengths; None where a response has no count.
    """

    record_R: np.ndarray
    score_RN: np.ndarray
    characters_RN: np.ndarray
    tokens_RN: np.ndarray | None

    @classmethod
    def of(cls, record_P: np.ndarray, score_P: np.ndarray, characters_P: np.ndarray, tokens_P: np.ndarray | None) -> Side:
        """From one row per response, in ascending order of records."""
        import numpy as np

        from dora_core.evaluation.metrics import padded

        record_R, place_P = np.unique(record_P, return_inverse=True)
        tokens = None if tokens_P is None else padded(tokens_P, place_P)
        return cls(record_R, padded(score_P, place_P), padded(characters_P, place_P), tokens)

    def at(self, rows: np.ndarray) -> Side:
        tokens = None if self.tokens_RN is None else self.tokens_RN[rows]
        return Side(self.record_R[rows], self.score_RN[rows], self.characters_RN[rows], tokens)


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.data.records import is_golden_source
    from dora_core.data.unpaired import LABEL, is_desirable

    judge = judge_of_all(spec, context)
    columns = ["record_id", "prompt_hash", "responses", "rewards", "reward_kind", "sources", "task"]
    records = pq.read_table(context.fetch(spec.records) / RECORDS_FILE, columns=columns, filters=[("split", "=", "eval")])
    place_of = {record: place for place, record in enumerate(records["record_id"].to_pylist())}
    best = [best_responses(rewards) for rewards in records["rewards"].to_pylist()]
    sources = [source_of(names, places) for names, places in zip(records["sources"].to_pylist(), best, strict=True)]

    policy = sampled(context, spec.samples, spec.scores, place_of)
    opponents = {"start": sampled(context, spec.start_samples, spec.start_scores, place_of)}
    if spec.champion_samples is not None and spec.champion_scores is not None:
        opponents["champion"] = sampled(context, spec.champion_samples, spec.champion_scores, place_of)
    for name, samples in spec.twin_samples.items():
        opponents[name] = sampled(context, samples, spec.twin_scores[name], place_of)
    if spec.chosen_scores is not None:
        kinds, rewards = records["reward_kind"].to_pylist(), records["rewards"].to_pylist()
        disliked = [kind == LABEL and not is_desirable(of_record) for kind, of_record in zip(kinds, rewards, strict=True)]
        approved = [[] if is_disliked else places for is_disliked, places in zip(disliked, best, strict=True)]
        opponents["chosen"] = chosen(context, spec.chosen_scores, records["responses"].to_pylist(), approved)

    taking_part = records.take(pa.array(policy.record_R))
    tasks = taking_part["task"].to_pylist()
    groups = {"source": np.array([sources[i] for i in policy.record_R], dtype=object), "task": np.array(tasks, dtype=object)}
    wins, warnings = dict[str, Wins](), list[str]()
    table = taking_part.select(["record_id", "prompt_hash", "task"]).append_column("source", pa.array(groups["source"], pa.string()))
    for name, opponent in opponents.items():
        comparison = Comparison.of(policy, opponent)
        for column, values in comparison.columns().items():
            table = table.append_column(f"{column}_{name}", pa.array(values, pa.float64(), from_pandas=True))
        if len(comparison.row_R) == 0:
            warnings.append(f"{name}: not one response of the policy has a score beside one of the opponent's")
        else:
            wins[name] = comparison.wins(spec.evaluate, taking_part["prompt_hash"].to_numpy(), groups)
    if not wins:
        raise DataError(
            f"no response could be compared: the {judge} judge gave no pair of scores for the {len(table)} held-out records",
            hint="see the judge stages' count of unscored responses; for an llm judge, read its log for answers without a verdict",
        )
    pq.write_table(table, context.path / COMPARISON_FILE, compression="zstd")

    lifts = {
        name: lift_over(policy, opponents[name], opponents["start"], records["prompt_hash"].to_numpy(), spec) for name in spec.twin_samples
    }
    golden = sorted(name for name in {*sources} if is_golden_source(name, spec.golden_sources))
    lifts_found = {name: lift for name, lift in lifts.items() if lift is not None}
    facts = Facts(judge=judge, wins=wins, lifts=lifts_found, golden=golden, warnings=warnings)
    return StageOutput(len(table), {name: interval.value for name, interval in intervals_of(facts).items()}, facts)


def intervals_of(facts: Facts) -> dict[str, Interval]:
    """Return the metrics with their intervals."""
    found = {f"win_rate_{name}": wins.win_rate for name, wins in facts.wins.items()}
    found |= {f"lc_win_rate_{name}": wins.length_controlled for name, wins in facts.wins.items()}
    return found | {f"win_rate_over_{name}": lift for name, lift in facts.lifts.items()}


# ------------------------------------------------------------------------------------------------------------ contestants


def judge_of_all(spec: Spec, context: StageContext) -> str:
    """Return the kind of the judge behind all scores.

    Raises:
        DataError: scores that cannot be compared: of several judges, or of a judge that ranks the responses of one policy.
    """
    judges = []
    for ref in spec.all_scores():
        judged = context.result(ref)["spec"]
        judges.append({name: judged[name] for name in ("judge", "model", "reference", "text")})
    kind = str(judges[0]["judge"]["kind"])
    if any(judge != judges[0] for judge in judges):
        raise DataError("the scores come from different judges, so their differences mean nothing", hint="judge all responses by the same")
    if judges[0]["judge"].get("against") == "each_other":
        raise DataError(
            "the llm judge compared responses of one policy with each other, so scores of two policies have nothing in common",
            hint="set judge.against=given: all meet the responses of the data",
        )
    return kind


def sampled(context: StageContext, samples: StageRef, scores: StageRef, place_of: dict[str, int]) -> Side:
    """A policy's samples and their scores."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(context.fetch(samples) / "samples.parquet", columns=[*KEYS, "response", "tokens"])
    judged = pq.read_table(context.fetch(scores) / "scores.parquet")
    assert judged.select(KEYS).equals(rows.select(KEYS)), "a judge keeps the order of the responses"
    tokens = None if rows["tokens"].null_count else rows["tokens"].to_numpy().astype(np.float64)
    record = np.array([place_of[name] for name in rows["record_id"].to_pylist()])
    characters = pc.utf8_length(rows["response"]).to_numpy().astype(np.float64)
    return Side.of(record, judged["score"].to_numpy(), characters, tokens)


def best_responses(rewards: list[float | None]) -> list[int]:
    """Places of the responses with the highest measured reward; all of them where none is measured."""
    measured = [reward for reward in rewards if reward is not None]
    return [i for i, reward in enumerate(rewards) if reward == max(measured)] if measured else list(range(len(rewards)))


def source_of(sources: list[str | None], places: list[int]) -> str:
    """The one source at these places, or :data:`SEVERAL`."""
    names = {sources[place] or UNKNOWN for place in places} or {UNKNOWN}
    return names.pop() if len(names) == 1 else SEVERAL


def chosen(context: StageContext, scores: StageRef, responses: list[list[str]], best: list[list[int]]) -> Side:
    """Each record's best response and its score; a record with several best responses, or with none, is missing."""
    import numpy as np
    import pyarrow.parquet as pq

    score_of = pq.read_table(context.fetch(scores) / "scores.parquet", columns=["score"])["score"].to_numpy()
    first = np.cumsum([0, *map(len, responses)])
    assert first[-1] == len(score_of), "the judge scored every held-out response of the same records"
    places = [(record, places[0]) for record, places in enumerate(best) if len(places) == 1]
    record = np.array([r for r, _ in places], dtype=int)
    score = np.array([score_of[first[r] + i] for r, i in places], dtype=np.float64)
    return Side.of(record, score, np.array([float(len(responses[r][i])) for r, i in places]), None)


# ------------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Comparison:
    """The policy and one opponent on the R records in which a pair of theirs is judged.

    Attributes:
        row_R: positions among the policy's records, ascending.
        shares_R3: win, tie, lose.
        records: the policy's records, of which ``len(row_R)`` are compared.
        pairs, pairs_without_score: on the records with responses of both.
    """

    policy: Side
    opponent: Side
    row_R: np.ndarray
    shares_R3: np.ndarray
    records: int
    pairs: int
    pairs_without_score: int

    @classmethod
    def of(cls, policy: Side, opponent: Side) -> Comparison:
        import numpy as np

        from dora_core.evaluation.winrate import win_tie_lose

        _, ours, theirs = np.intersect1d(policy.record_R, opponent.record_R, assume_unique=True, return_indices=True)
        a, b = policy.at(ours), opponent.at(theirs)
        shares = win_tie_lose(a.score_RN, b.score_RN)
        kept = ~np.isnan(shares[:, 0])
        pairs = _pairs(a.characters_RN, b.characters_RN)
        without = pairs - _pairs(a.score_RN, b.score_RN)
        return cls(a.at(kept), b.at(kept), ours[kept], shares[kept], len(policy.record_R), pairs, without)

    @property
    def lengths(self) -> tuple[Literal["tokens", "characters"], np.ndarray, np.ndarray]:
        """Unit of the lengths, lengths of the policy, lengths of the opponent."""
        ours, theirs = self.policy.tokens_RN, self.opponent.tokens_RN
        if ours is not None and theirs is not None:
            return "tokens", ours, theirs
        return "characters", self.policy.characters_RN, self.opponent.characters_RN

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of ``comparison.parquet``: one value per record of the policy, NaN where it is not compared."""
        import numpy as np

        from dora_core.evaluation.winrate import win_rate

        _, ours, theirs = self.lengths
        compared = {name: self.shares_R3[:, i] for i, name in enumerate(("win", "tie", "lose"))} | {"outcome": win_rate(self.shares_R3)}
        compared |= {"policy_length": np.nanmean(ours, axis=1), "length": np.nanmean(theirs, axis=1)} if len(self.row_R) else {}
        whole = {name: np.full(self.records, np.nan) for name in compared}
        for name, values in compared.items():
            whole[name][self.row_R] = values
        return whole

    def wins(self, evaluate: EvaluateConfig, prompt_R: np.ndarray, groups: dict[str, np.ndarray]) -> Wins:
        """Measure the comparison.

        Args:
            prompt_R: prompt of each of the policy's records, compared or not.
            groups: group of each of these records by grouping; None where it has none.
        """
        import numpy as np

        from dora_core.evaluation.metrics import worst_group
        from dora_core.evaluation.winrate import by_group, by_length, outcomes, sign_test, win_rate

        boot = (evaluate.bootstrap_samples, evaluate.confidence, evaluate.seed)
        prompts, shares = prompt_R[self.row_R], self.shares_R3
        unit, ours, theirs = self.lengths
        tables: dict[str, dict[str, Outcomes]] = {}
        for by, names in groups.items():
            named = np.array([name is not None for name in names[self.row_R]], dtype=bool)
            tables[by] = by_group(shares[named], names[self.row_R][named].astype(str), prompts[named], *boot)
        controlled = by_length(self.policy.score_RN, self.opponent.score_RN, ours, theirs, prompts, *boot)
        rates = {by: {name: group.win_rate for name, group in table.items()} for by, table in tables.items()}
        return Wins(
            **dict(outcomes(shares, prompts, *boot)),
            **dict(controlled),
            sign_test_p=sign_test(win_rate(shares), prompts),
            length=Lengths(unit=unit, policy=float(np.nanmean(ours)), opponent=float(np.nanmean(theirs))),
            records=len(self.row_R),
            records_left_out=self.records - len(self.row_R),
            pairs=self.pairs,
            pairs_without_score=self.pairs_without_score,
            by_source=tables["source"],
            by_task=tables["task"],
            worst_group=worst_group(rates, evaluate.min_group),
        )


def lift_over(policy: Side, twin: Side, start: Side, prompt_R: np.ndarray, spec: Spec) -> Interval | None:
    """The policy's win rate against the start minus the twin's, paired by prompt; None without a record in which all three are judged.

    Args:
        prompt_R: prompt of every held-out record.
    """
    import numpy as np

    from dora_core.evaluation.metrics import paired_difference
    from dora_core.evaluation.winrate import win_rate

    ours, theirs = Comparison.of(policy, start), Comparison.of(twin, start)
    record_R, at, other = np.intersect1d(policy.record_R[ours.row_R], twin.record_R[theirs.row_R], assume_unique=True, return_indices=True)
    if not len(record_R):
        return None
    options = spec.evaluate
    rates = win_rate(ours.shares_R3)[at], win_rate(theirs.shares_R3)[other]
    return paired_difference(*rates, prompt_R[record_R], options.bootstrap_samples, options.confidence, options.seed)


def _pairs(a_RN: np.ndarray, b_RM: np.ndarray) -> int:
    """Number of pairs with a value on both sides."""
    import numpy as np

    return int(((~np.isnan(a_RN)).sum(axis=1) * (~np.isnan(b_RM)).sum(axis=1)).sum())


def headline(result: StageResult[Facts]) -> str:
    return ", ".join(f"{estimate_text(wins.win_rate, '.3f')} against {name}" for name, wins in result.facts.wins.items())


STAGE = Stage(
    Spec,
    run,
    facts=Facts,
    headline=headline,
    tracked=tuple(f"{measure}_{name}" for name in ("start", "champion", "chosen") for measure in ("win_rate", "lc_win_rate")),
    intervals=lambda result: intervals_of(result.facts),
    section="stage",
)
