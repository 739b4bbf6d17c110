"""Balance of a mixture read from records: sides, weights by prompt, and what is too little to compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dora_core.classifier.text_statistics import surface_statistics
from infra.store.store import Store
from tasks.runtime.facts import ScoringFacts
from tasks.runtime.score_cache import Scores
from tasks.stages._calibration_balance import FEWEST, Sides, balanced_factors, statistics_at
from tasks.stages._calibration_ratios import Heads, Ratios
from tasks.tables.rows import read_index, texts_at
from tests.tasks.classified import ingested

SHARES = np.array([0.5, 0.5])


def world(folder: Path, golden: list[dict] | None = None, prompts: int = 120) -> Path:
    """Each prompt has a short human response and a long one of the bot; even prompts are about maths, odd ones about cooking, and people
    answer maths with one word more."""
    rows = [
        {
            "id": f"{i}",
            "prompt": f"{'maths' if i % 2 == 0 else 'cooking'} question {i}",
            "responses": [" ".join(["yes"] * (2 + (i % 2 == 0))) + ".", " ".join(["well"] * 9) + "."],
            "rewards": [1.0, 0.0],
            "sources": ["human", "bot"],
        }
        for i in range(prompts)
    ]
    store = Store(str(folder / "store"))
    return store.fetch("ingest", ingested(store, folder, rows, golden).digest)


def ratios(rows: int, prompt: np.ndarray | None = None) -> Ratios:
    columns = {"logit_bot": np.zeros(rows), "prompt_bot": np.zeros(rows) if prompt is None else prompt, "golden_prompt": np.zeros(rows)}
    scores = Scores(ScoringFacts(scored_rows=rows, reused_rows=0, rows_per_second=None), {}, columns, np.arange(rows))
    return Ratios(scores, Heads(["bot"], np.ones(1), np.zeros(1, bool), np.ones(1), conditional=True))


def test_weights_that_remove_the_bot_balance_exactly(tmp_path: Path) -> None:
    records = world(tmp_path)
    index = read_index(records / "records.parquet", "train")
    is_golden = np.array(index.names)[index.source_N] == "human"
    sides = Sides.read(records, is_golden, ratios(len(index)), SHARES)
    assert sides is not None and sides.golden == is_golden.sum()
    facts = sides.facts(np.where(is_golden, 2.0, 1e-12), None)
    words = facts.statistics["words"]
    # Half of the responses have 9 words, the others 2 or 3: one pooled standard deviation apart, or more.
    assert words.before > 1.0 and words.after == pytest.approx(0.0, abs=1e-6)
    assert facts.worst == pytest.approx(0.0, abs=1e-6) and facts.worst_before >= words.before


def test_golden_responses_count_as_on_the_prompts_of_the_mixture(tmp_path: Path) -> None:
    """People answer maths three times as often as the bot: m_0 = 3/4 there and 1/4 elsewhere, so golden maths weighs a third."""
    records = world(tmp_path)
    index = read_index(records / "records.parquet", "train")
    positions = np.arange(len(index))
    texts = np.log1p(surface_statistics(*_texts(records)))
    maths = np.array(["maths" in prompt for prompt in _texts(records)[0]])
    is_golden = np.array(index.names)[index.source_N] == "human"
    told = ratios(len(index), np.where(maths, np.log(3.0), -np.log(3.0)))
    np.testing.assert_allclose(told.golden_share(positions, SHARES), np.where(maths, 0.75, 0.25))
    sides = Sides.read(records, is_golden, told, SHARES)
    assert sides is not None
    expected = np.average(texts[is_golden], axis=0, weights=np.where(maths, 4 / 3, 4.0)[is_golden])
    np.testing.assert_allclose(sides.moments.golden_F, expected, rtol=1e-12)
    np.testing.assert_allclose(statistics_at(records / "records.parquet", positions), texts)
    assert ratios(len(index)).golden_share(positions, SHARES) is None, "prompts tell nothing: extra golden rows count too"


def test_extra_golden_rows_count_where_prompts_tell_nothing_and_too_few_are_not_compared(tmp_path: Path) -> None:
    golden = [{"prompt": f"other {i}", "response": "yes yes."} for i in range(70)]
    records = world(tmp_path, golden, prompts=30)
    index = read_index(records / "records.parquet", "train")
    is_golden = np.array(index.names)[index.source_N] == "human"
    sides = Sides.read(records, is_golden, ratios(len(index)), SHARES)
    assert sides is not None and sides.golden > is_golden.sum()
    assert is_golden.sum() < FEWEST and Sides.read(records, is_golden, ratios(len(index), np.ones(len(index))), SHARES) is None
    h = np.ones(len(index))
    assert balanced_factors(None, h, records / "records.parquet", enforce=False) == (h, None, [])
    _, ridge, warnings = balanced_factors(None, h, records / "records.parquet", enforce=True)
    assert ridge is None and "too few golden responses" in warnings[0]


def _texts(records: Path) -> tuple[list[str], list[str]]:
    return texts_at(records / "records.parquet", np.arange(len(read_index(records / "records.parquet", "train"))), "train")
