"""Stage ``race``: what to align with, by cross-fitted loss on golden preferences (``objective: auto``).

Input: records, calibration factors, the labels' trust (stage ``value``), and its labels and proxy pairs where that was computed for a race.
Output: ``calibration.parquet`` (record_id, response_index, source, h), in the form of ``calibrate``, with h the weight of the response's
record, of mean 1; ``label_trust.parquet`` in the form of ``value``, with the label probabilities of the choice. ``align`` reads both in
place of those tables, and its objective from the facts; with ``race.by: training`` both tables of every finalist, in
``finalists/<name>/``. Guarantee: no golden preference is scored by a head that saw its prompt, nor by labels softened with its help.
Cost: some hundred convex fits on at most ``exchange.max_labels`` labels per source, minutes on one core; no model is loaded.

The method, and what it leaves out, is in ``dora_core/selection/race.py``. Entrants are compared on a proxy, a linear head on frozen text
features: it sees which labels and texts predict people's preferences, not what a large policy might learn beyond them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from dora_core.errors import DataError
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import is_unset
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._policy_vectors import compute_vectors
from tasks.stages._race_facts import Facts as Facts
from tasks.stages._race_facts import Finalist, Standing
from tasks.stages._value_labels import Labels
from tasks.stages._value_proxy import compute_proxy, read_mixture, read_proxy
from tasks.tables.artifacts import CALIBRATION_FILE, FINALISTS, RECORDS_FILE, TRUST_FILE
from tasks.tables.rows import record_batches, responses_of
from tasks.tables.training_records import Aggregate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.selection.race import Choice, Race

LEAST_GOLDEN = 10
"""Least number of golden-labelled prompts: fewer cannot tell any two entrants apart."""


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "race"
    version: ClassVar[int] = 2  # biased judges in label trust

    records: StageRef
    calibration: StageRef
    value: StageRef
    race: RaceConfig
    trust: TrustConfig
    exchange: ExchangeConfig
    golden_sources: list[str]
    aggregate: Aggregate = "mean"
    start: StageRef | None = Field(None, exclude_if=is_unset)
    """With :attr:`model` and :attr:`text` the policy before alignment, for ``exchange.features``; None for text features."""
    model: ModelConfig | None = Field(None, exclude_if=is_unset)
    text: TextConfig | None = Field(None, exclude_if=is_unset)


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np

    from dora_core.selection.race import Race, RaceData, entrants, ridge_of

    records = context.fetch(spec.records) / RECORDS_FILE
    warnings = list[str]()
    proxy = read_proxy(context.fetch(spec.value))
    labels = proxy.labels if proxy else _read_labels(spec, context, records)
    golden = labels.golden_prompts
    if golden < LEAST_GOLDEN:
        raise DataError(
            f"align.objective.name is auto, which compares ways to train on golden preferences, and {golden} prompts have golden labels; "
            f"at least {LEAST_GOLDEN} are needed",
            hint="name an objective (align.objective.name: dora), or check data.golden_sources and trust.labeller",
        )
    if proxy is None:
        vectors = None
        if spec.exchange.features != "text":
            wanted = np.isin(np.arange(len(labels.group_R)), labels.sample(spec.exchange.max_labels, spec.exchange.seed))
            vectors = compute_vectors(context, records, wanted, spec.start or spec.model, spec.text, spec.execution)
        proxy = compute_proxy(records, labels, spec.trust, spec.exchange, warnings, vectors).proxy
    pairs = proxy.pairs
    label_P = None if spec.trust.method == "off" or proxy.held_out_KP is None else proxy.label_P
    data = RaceData(pairs, labels.factor_R[proxy.record_P], label_P, None if label_P is None else proxy.held_out_KP)
    race = Race(data, ridge_of(pairs), spec.race.seed)
    field = entrants(factors=True, trust=label_P is not None, objectives=spec.race.objectives)
    for done, entrant in enumerate(field):
        context.progress(done, len(field), "entrants", entrant.name)
        race.run(entrant)
    choice = race.choose()
    probability_R = read_probabilities(context.fetch(spec.value) / TRUST_FILE)
    weight_R = write_recipe(records, context.path, labels, choice, probability_R)
    finalists = {}
    for name, finalist in (race.finalists(choice) if spec.race.by == "training" else {}).items():
        weights = write_recipe(records, context.path / FINALISTS / name, labels, finalist, probability_R)
        finalists[name] = Finalist(title=finalist.title, objective=objective_of(finalist), mean_weight=mean_weights(labels, weights))
    facts = Facts(
        standings=standings(race, choice),
        reason=choice.reason,
        decided=choice.decided,
        objective=objective_of(choice),
        golden_prompts=golden,
        pairs=len(pairs),
        ridge=race.ridge,
        mean_weight=mean_weights(labels, weight_R),
        **({"finalists": finalists} if finalists else {}),
        warnings=warnings if choice.decided else [*warnings, f"{golden} golden-labelled prompts do not tell erm from golden_only"],
    )
    metrics = {f"loss_{s.name.replace(' ', '_')}": s.loss for s in facts.standings if s.name in ("golden_only", "erm", "reweight")}
    metrics |= {"best_loss": facts.standings[0].loss, "decided": float(choice.decided)}
    metrics |= {f"weight_{name}": weight for name, weight in facts.mean_weight.items()}
    assert np.isfinite(weight_R).all()
    return StageOutput(rows=len(labels.ids), metrics=metrics, facts=facts)


def _read_labels(spec: Spec, context: StageContext, records: Path) -> Labels:
    factors = context.fetch(spec.calibration) / CALIBRATION_FILE
    return read_mixture(records, factors, spec.aggregate, spec.golden_sources, spec.trust, spec.exchange)


def objective_of(choice: Choice) -> ObjectiveConfig:
    """The objective that trains on the recipe's weights."""
    robust = choice.robust
    if robust is None:
        return ObjectiveConfig(name="reweight")
    return ObjectiveConfig(name=robust.objective, lam="auto", ess_target=robust.ess_target)


def standings(race: Race, choice: Choice) -> list[Standing]:
    best = min((e for e in race.losses if e.is_weighting), key=lambda e: float(race.losses[e].mean()))
    rows = []
    for entrant, loss_G in race.losses.items():
        excess, error = race.excess(entrant, best)
        share = choice.shares.get(entrant, 0.0)
        rows.append(Standing(name=entrant.name, loss=loss_G.mean(), excess=excess, error=None if entrant == best else error, share=share))
    return sorted(rows, key=lambda row: row.loss)


def mean_weights(labels: Labels, weight_R: NDArray[np.float64]) -> dict[str, float]:
    """Mean weight by group of labels, in units of the golden ones'."""
    means = {name: float(weight_R[labels.group_R == group].mean()) for group, name in enumerate(labels.names) if labels.count(group)}
    unit = means[labels.names[0]]
    return {name: mean / unit for name, mean in means.items()}


def read_probabilities(path: Path) -> NDArray[np.float64]:
    """Label probability of every train record; 1 where there is none."""
    import numpy as np
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["label_probability"])["label_probability"]
    probability_R: NDArray[np.float64] = np.nan_to_num(column.to_numpy(), nan=1.0)
    return probability_R


def write_recipe(records: Path, folder: Path, labels: Labels, choice: Choice, probability_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """Write the record weights of a choice in the form of calibration factors, and its label probabilities in that of label trust.

    Args:
        probability_R: estimated label probability of every train record.

    Returns:
        The weights, (R,), of mean 1.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    weight_R, label_R = choice.recipe(labels.group_R == 0, labels.factor_R, probability_R)
    weight_R /= weight_R.mean()
    folder.mkdir(parents=True, exist_ok=True)
    start, writer = 0, None
    for batch in record_batches(records, ["record_id", "responses", "sources"], "train"):
        counts = np.array([len(responses) for responses in batch["responses"].to_pylist()])
        table = responses_of(batch).select(["record_id", "response_index", "source"])
        table = table.append_column("h", pa.array(np.repeat(weight_R[start : start + len(batch)], counts)))
        writer = writer or pq.ParquetWriter(folder / CALIBRATION_FILE, table.schema, compression="zstd")
        writer.write_table(table)
        start += len(batch)
    assert writer is not None, "a race has golden records"
    writer.close()
    named = pa.array([labels.names[group] if group >= 0 else None for group in labels.group_R.tolist()], pa.string())
    trust = {"record_id": pa.array(labels.ids, pa.string()), "label_source": named, "label_probability": pa.array(label_R)}
    pq.write_table(pa.table(trust), folder / TRUST_FILE, compression="zstd")
    return weight_R


def headline(result: StageResult[Facts]) -> str:
    return result.facts.reason


STAGE = Stage(Spec, run, facts=Facts, headline=headline, tracked=("best_loss", "loss_", "weight_"), section="stage")
