"""The tables of a grid written by hand: two seeds of four cells on a real known mixture, without any model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dora_core.config.method import TestbedConfig
from dora_core.evaluation.study_statistics import TABLES, Cell
from dora_core.testbed.mixture import GOLDEN, Testbed
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages.study import CellRun, Spec, run
from tests.tasks.facts import assert_round_trip, calibration, evaluation, guarded, interval
from tests.tasks.handmade import finished

ERM = Cell(loss="dpo", objective="erm")
DORA = Cell(loss="dpo", objective="dora", lam="auto", factors="mixture", temper="auto")
EXACT = Cell(loss="dpo", objective="dora", lam="auto", factors="exact")
ALONE = Cell(loss="lire", objective="dora", lam="1", factors="mixture")  # has no erm twin
SEEDS = (0, 1)
PROMPTS = 30


class HandMade:
    """A store whose stages hold what the tables read, with numbers chosen here."""

    def __init__(self, root: Path):
        self.store = Store(str(root))

    def run(self, cell: Cell, seed: int, tables: list[str], advantage: float) -> CellRun:
        """One run whose samples beat the start's on a share ``advantage`` of prompts and tie on the others."""
        config = TestbedConfig(prompts=2 * PROMPTS, seed=seed)
        rng = np.random.default_rng([seed, 7])  # shared by all cells of a seed: noise that a paired difference cancels
        ids = [f"r0-{i:05d}" for i in range(PROMPTS)]
        start = np.round(rng.normal(size=(PROMPTS, 2)), 1)
        wins = (np.arange(PROMPTS) < round(advantage * PROMPTS))[:, None]
        policy = np.where(wins, start.max(axis=1, keepdims=True) + 1.0, start[:, :1]) + np.zeros((PROMPTS, 2))
        start = np.where(wins, start, start[:, :1])
        name, records = f"{cell.key()}/{seed}", finished(self.store, "ingest", f"{seed}", {})
        truth = self.truth(config)
        return CellRun(
            cell=cell,
            seed=seed,
            tables=tables,
            records=records,
            align=finished(self.store, "align", name, {}, {"align": {"loss": {"name": cell.loss}, "optimization": {"epochs": 1.0}}}),
            samples=finished(
                self.store, "generate", name, {"samples.parquet": _samples(ids, tokens=20 + seed)}, {"generate": {"samples": 2}}
            ),
            scores=finished(self.store, "judge", name, {"scores.parquet": _scores(ids[::-1], policy[::-1])}),
            start_scores=finished(self.store, "judge", f"start/{name}", {"scores.parquet": _scores(ids, start)}),
            evaluation=self.evaluation(name, truth, kl=1.0 + seed),
            truth=truth,
            calibration=self.calibration(cell, config, truth),
            guards=[finished(self.store, "guard", name, {}, facts=guarded(self.rules(kl_passed=seed != 1)))],
        )

    def rules(self, *, kl_passed: bool) -> list[dict[str, Any]]:
        return [
            {"name": "kl", "passed": kl_passed, "message": "KL is 20"},
            {"name": "self_bleu", "passed": None, "message": "one sample; not judged"},
        ]

    def truth(self, config: TestbedConfig) -> StageRef:
        bed = Testbed(config)
        rows = []
        for record, row in enumerate(bed.generate()):
            for index, (response, source) in enumerate(zip(row["responses"], row["sources"], strict=True)):
                log_q = {f"log_q_{s}": bed.log_density(s, row["prompt"], response) for s in bed.sources}
                rows.append(
                    {"record_id": row["id"], "response_index": index, "split": "train" if record >= PROMPTS else "eval", "source": source}
                    | {"ratio": bed.true_ratio(row["prompt"], response), "gold": bed.gold_reward(row["prompt"], response)}
                    | log_q
                    | {f"log_prompt_{s}": bed.log_prompt_ratio(s, row["prompt"]) for s in bed.sources}
                )
        table = pa.Table.from_pylist(rows)
        train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()]))
        h = train.select(["record_id", "response_index", "source"]).append_column("h", train["ratio"])
        spec = {"testbed": config.model_dump(), "calibration": {"form": "mixture", "cap_quantile": None}}
        facts = {"shares": bed.shares, "sources": list(bed.sources)}
        return finished(self.store, "truth", f"{config.seed}", {"truth.parquet": table, "calibration.parquet": h}, spec, facts)

    def evaluation(self, name: str, truth: StageRef, kl: float) -> StageRef:
        """Implicit reward = gold, likelihood = −gold: correlations of exactly 1 and −1. Half of the labelled pairs are right."""
        table = pq.read_table(self.store.fetch(truth.stage, truth.digest) / "truth.parquet")
        table = table.filter(pa.array([split == "eval" for split in table["split"].to_pylist()]))
        gold = table["gold"].to_numpy()
        responses = table.select(["record_id", "response_index"]).append_column("implicit", pa.array(gold))
        responses = responses.append_column("logp_per_token", pa.array(-gold)).append_column(
            "tokens", pa.array([9] * len(gold), pa.int32())
        )
        pairs = pa.table(
            {
                "record": list(range(PROMPTS)),
                "prompt_hash": pa.array(range(PROMPTS), pa.uint64()),
                "reward_gap": [1.0] * PROMPTS,
                "margin_policy": [1.0, -1.0] * (PROMPTS // 2),
            }
        )
        files = {"evaluation.parquet": pairs, "responses.parquet": responses}
        return finished(self.store, "evaluate", name, files, facts=evaluation(kl=interval(kl, 0.0, 4)))

    def calibration(self, cell: Cell, config: TestbedConfig, truth: StageRef) -> StageRef | None:
        """The truth itself, or classifiers whose log-ratios are exact but for noise of .3 nats."""
        if cell.factors in ("none", "exact"):
            return truth if cell.factors == "exact" else None
        table = pq.read_table(self.store.fetch(truth.stage, truth.digest) / "truth.parquet")
        table = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()]))
        heads = [s for s in Testbed(config).sources if s != GOLDEN]
        rng, gamma = np.random.default_rng(config.seed), np.array([0.8, 1.1, 1.3])
        log_w = np.column_stack([table[f"log_q_{GOLDEN}"].to_numpy() - table[f"log_q_{s}"].to_numpy() for s in heads])
        log_w = np.clip(log_w + rng.normal(0, 0.3, log_w.shape), -15, 15)
        c = 1 / (1 + np.exp(-(log_w - np.log(gamma))))
        shares = dict(zip(["golden", *heads], [0.25, 0.25, 0.25, 0.25], strict=True))
        h = 1 / (0.25 + (0.25 / np.exp(log_w)).sum(axis=1))
        columns = {name: table[name] for name in ("record_id", "response_index", "source")}
        columns |= {f"c_{s}": c[:, i] for i, s in enumerate(heads)} | {f"w_{s}": np.exp(log_w[:, i]) for i, s in enumerate(heads)}
        spec = {"calibration": {"form": "mixture", "cap_quantile": 0.99}}
        return finished(
            self.store,
            "calibrate",
            f"{config.seed}",
            {"calibration.parquet": pa.table(columns | {"h": np.sqrt(h)})},
            spec,
            calibration(shares=shares),
        )


def _scores(ids: list[str], score: np.ndarray) -> pa.Table:
    n = score.shape[1]
    return pa.table(
        {
            "record_id": [i for i in ids for _ in range(n)],
            "sample": pa.array(list(range(n)) * len(ids), pa.int32()),
            "score": score.ravel(),
        }
    )


def _samples(ids: list[str], tokens: int) -> pa.Table:
    return pa.table(
        {
            "record_id": [i for i in ids for _ in range(2)],
            "sample": pa.array([0, 1] * len(ids), pa.int32()),
            "tokens": pa.array([tokens - 1, tokens + 1] * len(ids), pa.int32()),
        }
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, dict[str, Any], Path]:
    made = HandMade(tmp_path_factory.mktemp("study"))
    cells = [
        made.run(cell, seed, tables, advantage)
        for cell, tables, advantage in (
            (ERM, ["pairwise", "lambda", "noise"], 0.2),
            (DORA, ["pairwise", "lambda", "calibration", "confidence"], 0.6),
            (EXACT, ["ablation", "calibration"], 0.4),
            (ALONE, ["listwise"], 0.0),
        )
        for seed in SEEDS
    ]
    spec = Spec(cells=cells, bootstrap_samples=200)
    result = execute(spec, run, made.store)
    return spec, result, made.store.fetch("study", spec.digest())


def test_facts_are_unchanged_by_parsing_and_dumping(study: tuple[Spec, dict[str, Any], Path]) -> None:
    assert_round_trip(study[1])


def test_measures_of_cells_by_hand(study: tuple[Spec, dict[str, Any], Path]) -> None:
    cells = study[1]["facts"]["cells"]
    got = {name: e["value"] for name, e in cells[DORA.key()]["estimates"].items()}
    expected = {"win": 0.6, "tie": 0.4, "lose": 0.0, "win_rate": 0.8, "win_rate_lift": 0.2, "accuracy": 0.5, "accuracy_gold": 1.0}
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert got["kl"] == 1.5 and got["tokens"] == 20.5
    assert got["confidence_implicit"] == pytest.approx(1.0) and got["confidence_likelihood"] == pytest.approx(-1.0)
    assert cells[ERM.key()]["twin"] is None and "win_rate_lift" not in cells[ERM.key()]["estimates"]
    assert cells[DORA.key()]["twin"] == ERM.key() == cells[EXACT.key()]["twin"]
    assert cells[ALONE.key()]["twin"] is None
    assert cells[ALONE.key()]["estimates"]["win_rate"] | {"t_low": 0, "t_high": 0} == {
        "value": 0.5, "low": 0.5, "high": 0.5, "t_low": 0, "t_high": 0, "seeds": 2, "prompts": 2 * PROMPTS,
    }  # fmt: skip


def test_the_lift_is_paired_on_prompts(study: tuple[Spec, dict[str, Any], Path]) -> None:
    """The win rate of a prompt is 1 or ½ in both cells; it differs on 12 of 30 prompts, by ½: mean .2, variance .06 per prompt."""
    lift = study[1]["facts"]["cells"][DORA.key()]["estimates"]["win_rate_lift"]
    half = 1.96 * np.sqrt(0.06 / (2 * PROMPTS))
    assert (lift["low"], lift["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=0.015)
    assert lift["seeds"] == 2 and lift["prompts"] == 2 * PROMPTS


def test_calibration_against_the_truth(study: tuple[Spec, dict[str, Any], Path]) -> None:
    rows = {row["label"]: row["estimates"] for row in study[1]["facts"]["calibration"]}
    assert list(rows) == [
        "mixture · classifiers", "paper · classifiers", "released · classifiers", "mixture · classifiers · τ=auto, cap 0.99",
        "mixture · exact", "paper · exact", "released · exact", "mixture · exact · as used",
    ]  # fmt: skip
    exact = rows["mixture · exact"]
    assert exact["pearson"]["value"] == pytest.approx(1.0, abs=1e-9) and exact["error"]["value"] < 1e-5
    assert rows["mixture · exact · as used"]["error"]["value"] == 0.0
    trained = rows["mixture · classifiers"]
    assert 0.9 < trained["pearson"]["value"] < 1.0 and trained["kl"]["low"] > exact["kl"]["high"]
    for form in ("paper", "released"):
        assert trained["error"]["value"] < rows[f"{form} · classifiers"]["error"]["value"]
    used = rows["mixture · classifiers · τ=auto, cap 0.99"]  # the square root of the raw h of other draws of γ
    assert used["spearman"]["value"] == pytest.approx(trained["spearman"]["value"]) and used["ess"]["value"] > trained["ess"]["value"]
    assert trained["pearson"]["seeds"] == 2 and trained["pearson"]["prompts"] == 2 * PROMPTS


def test_the_trained_h_is_recomputed_as_the_stage_computes_it(study: tuple[Spec, dict[str, Any], Path]) -> None:
    """The stage of this test wrote √h of the mixture form: squared, it is the recomputed one, point by point."""
    scatter = study[1]["facts"]["scatter"]
    raw, used = scatter["mixture · classifiers"], scatter["mixture · classifiers · τ=auto, cap 0.99"]
    assert raw["truth"] == used["truth"] and 0 < len(raw["h"]) <= 400
    squared = np.square(used["h"])
    assert raw["h"] == pytest.approx(squared * np.mean(raw["h"]) / squared.mean(), rel=5e-3)


def test_tables_are_tidy_and_the_missing_ones_are_explained(study: tuple[Spec, dict[str, Any], Path]) -> None:
    _, result, folder = study
    facts = result["facts"]
    assert set(facts["tables"]) | set(facts["missing"]) == set(TABLES) and not set(facts["tables"]) & set(facts["missing"])
    assert {facts["missing"][name] for name in ("rounds", "shifted_golden")} == {"No cell of this study belongs to this table."}
    assert facts["tables"]["pairwise"] == [ERM.key(), DORA.key()]
    assert sorted(p.stem for p in (folder / "tables").iterdir()) == sorted(facts["tables"])
    table = pq.read_table(folder / "tables/pairwise.parquet").to_pylist()
    row = next(r for r in table if r["key"] == DORA.key() and r["measure"] == "win_rate")
    assert row["loss"] == "dpo" and row["lam"] == "auto" and row["value"] == pytest.approx(0.8) and row["low"] <= 0.8 <= row["high"]
    factors = pq.read_table(folder / "tables/calibration.parquet").to_pylist()
    assert {r["measure"] for r in factors} == {"pearson", "spearman", "error", "ess", "kl"} and len(factors) == 8 * 5


def test_facts_say_what_the_flow_logs_and_the_page_prints(study: tuple[Spec, dict[str, Any], Path]) -> None:
    spec, result, _ = study
    cell = result["facts"]["cells"][DORA.key()]
    assert cell["params"] == DORA.model_dump() | {"seeds": 2} and cell["metrics"]["win_rate"] == pytest.approx(0.8)
    assert {"win_rate_low", "win_rate_lift_high"} <= set(cell["metrics"]) and all(isinstance(v, float) for v in cell["metrics"].values())
    assert result["metrics"] == {"cells": 4.0, "runs": 8.0, "cells_above_erm": 2.0, "cells_below_erm": 0.0}
    settings = result["facts"]["settings"]
    assert settings["seeds"] == [0, 1] and settings["losses"] == {"dpo": {"name": "dpo"}, "lire": {"name": "lire"}}
    assert settings["testbed"]["alpha"] == 0.25 and "seed" not in settings["testbed"]
    assert cell["broken_rules"] == {"1": {"kl": "KL is 20"}}
    assert spec.placement == "local" and Spec(cells=spec.cells, bootstrap_samples=300).digest() != spec.digest()


def test_one_seed_has_tables_with_the_same_columns(study: tuple[Spec, dict[str, Any], Path]) -> None:
    spec, _, folder = study
    store = Store(str(folder.parents[1]))
    alone = Spec(cells=[c for c in spec.cells if c.seed == 0], bootstrap_samples=100)
    execute(alone, run, store)
    one = store.fetch("study", alone.digest())
    for name in ("pairwise", "calibration"):
        table = pq.read_table(one / f"tables/{name}.parquet")
        assert table.schema.equals(pq.read_schema(folder / f"tables/{name}.parquet")) and table["t_low"].null_count == len(table)


def test_a_seed_twice_in_a_cell_is_refused(study: tuple[Spec, dict[str, Any], Path]) -> None:
    with pytest.raises(ValidationError, match="one run per seed"):
        Spec(cells=[study[0].cells[0], study[0].cells[0]])
