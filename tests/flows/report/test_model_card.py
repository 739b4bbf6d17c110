"""The model card: what it says is in the results, and what is not known is a gap."""

from __future__ import annotations

from pathlib import Path

import yaml

from flows.report.model_card import GAP, model_card
from infra.store.store import Store
from infra.tracking import model_registry as registry
from infra.tracking.registered_models import find
from tests.flows.registered_demo import register_demo


def test_the_card_names_data_objective_measures_and_decisions(mlflow_sqlite: str, tmp_path: Path) -> None:
    store = register_demo(mlflow_sqlite, tmp_path / "store")
    version, past = find(mlflow_sqlite, "demo"), registry.history(mlflow_sqlite, "demo", "1")
    card = model_card(store, version, past)
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "lab/base-model" and head["license"] == "unknown" and head["library_name"] == "transformers"
    assert "Decision: **promoted**. Aliases: champion. Win rate .600 [.550, .650] over the start." in card
    assert "trusted sources: human" in card and f"`pairs.parquet`, sha256 `{'f' * 64}`" in card and "| a-bot | 90 | 75.0% |" in card
    assert "| measure | estimate with 90% interval |" in card
    assert "| win rate against start, at equal length | 0.600 [0.550, 0.650] | 100 |" in card
    assert "undecided: win_rate: win rate above 0.5: 0.4" in card and "promoted by ann: a person looked at it" in card
    assert card.count(GAP) == 2, "licence and intended use"
    assert GAP not in model_card(store, version, past, license="mit", intended_use="Answers about swimming.")


def test_results_that_are_elsewhere_are_said_to_be_missing(mlflow_sqlite: str, tmp_path: Path) -> None:
    register_demo(mlflow_sqlite, tmp_path / "store")
    card = model_card(Store(str(tmp_path / "other")), find(mlflow_sqlite, "demo"), [])
    assert "not in this store" in card and "Decisions\n\nNone." in card
