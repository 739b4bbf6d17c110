"""Measures of one run of a study per held-out prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.stages._evaluate_facts import Facts as EvaluateFacts
from tasks.stages._study_inputs import CellRun, Reader, strings
from tasks.tables.artifacts import EVALUATION_FILE, RESPONSES_FILE

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Series:
    """One number per held-out prompt of one run: (K,) distinct ids in ascending order, (K,) finite values."""

    ids: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, values: np.ndarray) -> Series:
        """Leave out the prompts where the measure is undefined."""
        import numpy as np

        return cls(ids[np.isfinite(values)], values[np.isfinite(values)])

    def minus(self, other: Series) -> np.ndarray:
        """Differences on the shared prompts."""
        import numpy as np

        _, ours, theirs = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        difference: np.ndarray = self.values[ours] - other.values[theirs]
        return difference


def measure(one: CellRun, reader: Reader) -> dict[str, Series]:
    """Every measure of one run, per prompt, and the KL as a series of one."""
    import numpy as np
    import pyarrow.compute as pc

    from dora_core.evaluation.metrics import correct, padded, pair_accuracy, spearman_within
    from dora_core.evaluation.winrate import win_rate, win_tie_lose

    ids, gold = reader.gold(one.scores)
    start_ids, start_gold = reader.gold(one.start_scores)
    shared, ours, theirs = np.intersect1d(ids, start_ids, assume_unique=True, return_indices=True)
    shares = win_tie_lose(gold[ours], start_gold[theirs])
    found = {name: Series(shared, shares[:, i]) for i, name in enumerate(("win", "tie", "lose"))}
    found |= {"win_rate": Series(shared, win_rate(shares)), "gold": Series(ids, gold.mean(axis=1))}

    samples = reader.table(one.samples, "samples.parquet", ["record_id", "sample"])
    found["tokens"] = _prompt_means(strings(samples["record_id"]), samples["tokens"].to_numpy().astype(float))

    pairs = reader.table(one.evaluation, EVALUATION_FILE, ["prompt_hash"])
    found["accuracy"] = _prompt_means(pairs["prompt_hash"].to_numpy(), correct(pairs["margin_policy"].to_numpy()))

    keys = ["record_id", "response_index"]
    truth = reader.table(one.truth, "truth.parquet", keys)
    held_out = truth.filter(pc.equal(truth["split"], "eval")).select([*keys, "gold"])
    scored = reader.table(one.evaluation, RESPONSES_FILE, keys).join(held_out, keys, join_type="inner")
    scored = scored.sort_by([(key, "ascending") for key in keys])
    prompts, index = np.unique(strings(scored["record_id"]), return_inverse=True)
    columns = {name: padded(scored[name].to_numpy(), index) for name in ("implicit", "logp_per_token", "gold")}
    found["accuracy_gold"] = Series.of(prompts, pair_accuracy(columns["implicit"], columns["gold"]))
    found["confidence_implicit"] = Series.of(prompts, spearman_within(columns["implicit"], columns["gold"]))
    found["confidence_likelihood"] = Series.of(prompts, spearman_within(columns["logp_per_token"], columns["gold"]))

    kl = reader.context.facts(one.evaluation, EvaluateFacts).kl
    found["kl"] = Series.of(np.array(["all"]), np.array([np.nan if kl is None else kl.value], dtype=float))
    return found


def _prompt_means(prompt_N: np.ndarray, values_N: np.ndarray) -> Series:
    import numpy as np

    ids, index = np.unique(prompt_N, return_inverse=True)
    return Series(ids, np.bincount(index, values_N) / np.bincount(index))
