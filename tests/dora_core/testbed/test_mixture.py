"""The known mixture: exact densities, finite ratios, sources with their biases, honest human labels and biased model labels."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.method import TestbedConfig
from dora_core.errors import ConfigError, DataError
from dora_core.testbed import mixture as testbed
from dora_core.testbed.mixture import FLOOR, GOLDEN, REFERENCE, Testbed, materialize

SMALL = TestbedConfig(prompts=10, topics=2, max_sentences=2, sources=5)
FULL = TestbedConfig(prompts=400, sources=5)


@pytest.fixture(scope="module")
def full() -> Testbed:
    return Testbed(FULL)


@pytest.fixture(scope="module")
def drawn(full) -> dict[str, list[tuple[str, str]]]:
    """400 (prompt, response) of each source."""
    rng = np.random.default_rng(1)
    prompts = [row["prompt"] for row in full.generate()]
    return {s: [(x, full.sample(s, x, rng)) for x in prompts] for s in full.sources}


def means(bed: Testbed, pairs, name: str) -> float:
    return float(np.mean([bed.features(*pair)[name] for pair in pairs]))


# ------------------------------------------------------------------------------------------------------- densities


def test_densities_sum_to_one_over_the_whole_support_and_texts_are_distinct():
    bed = Testbed(SMALL)
    prompt = bed.generate()[0]["prompt"]
    support = list(bed.support(prompt))
    assert len(support) == len(set(support)) == 4 * 4 * (35 + 35**2)  # 2·3·4 pieces of advice, 4 reasons, 4 fillers, 3 flatteries
    for source in bed.sources:
        log_p = np.array([bed.log_density(source, prompt, y) for y in support])
        assert np.isfinite(log_p).all()
        assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-9)


def test_density_is_the_exponential_family_of_its_docstring():
    """log Q_s − log Q_golden must be (θ_s − θ_golden)·φ plus one constant; here θ differs in flattery only, by 1.8·shift."""
    bed = Testbed(TestbedConfig(prompts=20, sources=2, shift=0.5))
    rows = bed.generate()
    pairs = [(r["prompt"], y) for r in rows for y in r["responses"]]
    constants = [
        bed.log_density("sycophant-lm", *p) - bed.log_density(GOLDEN, *p) - 0.5 * 1.8 * bed.features(*p)["flattery"] for p in pairs
    ]
    assert np.ptp(constants) < 1e-9


def test_samples_follow_their_density(full, drawn):
    """E_s[p_golden/p_s] = 1 needs sampler, parser and both densities to agree; tolerance is four standard errors."""
    for source in full.sources[1:]:
        ratios = np.exp([full.log_density(GOLDEN, *p) - full.log_density(source, *p) for p in drawn[source]])
        assert ratios.mean() == pytest.approx(1.0, abs=4 * ratios.std() / math.sqrt(len(ratios)))
        assert ratios.std() > 0.2


def test_true_ratio_is_golden_over_the_mixture_and_bounded(full, drawn):
    alpha, n = FULL.alpha, FULL.sources
    x, y = drawn["vague-lm"][0]
    q = [math.exp(full.log_density(s, x, y)) for s in full.sources]
    expected = q[0] / (alpha * q[0] + (1 - alpha) / n * sum(q[1:]))
    assert full.true_ratio(x, y) == pytest.approx(expected, rel=1e-9)
    ratios = [full.true_ratio(*p) for p in itertools.chain(*drawn.values())]
    assert min(ratios) > 0
    assert max(ratios) < 1 / alpha


def test_without_shift_every_source_is_the_golden_one():
    bed = Testbed(TestbedConfig(prompts=20, shift=0.0, sources=5))
    for row in bed.generate():
        for response, reward in zip(row["responses"], row["rewards"], strict=True):
            assert bed.true_ratio(row["prompt"], response) == pytest.approx(1.0, abs=1e-9)
            assert reward == pytest.approx(bed.gold_reward(row["prompt"], response), abs=1.5)  # 6 standard deviations of a label


def test_foreign_text_has_no_density_but_a_low_reward(full):
    prompt = full.generate()[0]["prompt"]
    for text in ("", "Good luck.", "asdf", "A clear routine saves effort.  Good luck.", "A clear routine saves effort. " * 20):
        assert full.log_density(GOLDEN, prompt, text) == -math.inf
        assert math.isnan(full.true_ratio(prompt, text))
        assert full.features(prompt, text) is None
    assert full.gold_reward(prompt, "asdf") == full.gold_reward(prompt, "") == FLOOR
    clean = full.gold_reward(prompt, "A clear routine saves effort.")
    assert clean == 0.5  # one reason
    assert full.gold_reward(prompt, "A clear routine saves effort. And so.") == clean - 1.0
    assert full.gold_reward(prompt, "A clear routine saves effort. " * 20) == FLOOR


def test_gold_reward_by_hand(full):
    prompt = next(p for p in (r["prompt"] for r in full.generate()) if " sleep" in p)
    text = (
        "What a brilliant question! First, keep a fixed bedtime. First, keep a fixed bedtime. Every week, oil the chain. "
        "A clear routine saves effort. As everyone knows, this is a broad subject. Good luck."
    )
    # 2 advice + .5 reason − .5 filler − 1 flattery − 1.5 off topic − 1 repeat − .8 for the fifth sentence
    assert full.gold_reward(prompt, text) == pytest.approx(2 + 0.5 - 0.5 - 1 - 1.5 - 1 - 0.8)


# ------------------------------------------------------------------------------------------------------- the biases


@pytest.mark.parametrize(
    ("source", "feature"),
    [
        ("verbose-lm", "length"),
        ("sycophant-lm", "flattery"),
        ("repeater-lm", "repeat"),
        ("vague-lm", "filler"),
        ("distracted-lm", "off_topic"),
    ],
)
def test_each_source_has_its_vice_and_a_lower_gold_reward(full, drawn, source, feature):
    assert means(full, drawn[source], feature) > means(full, drawn[GOLDEN], feature) + 0.3
    gold = {s: np.mean([full.gold_reward(*p) for p in drawn[s]]) for s in (GOLDEN, source)}
    assert gold[source] < gold[GOLDEN] - 0.1


def test_the_best_possible_classifier_separates_sources_but_not_perfectly(full, drawn):
    for source in full.sources[1:]:
        score = {s: np.array([full.log_density(GOLDEN, *p) - full.log_density(source, *p) for p in drawn[s]]) for s in (GOLDEN, source)}
        difference = score[GOLDEN][:, None] - score[source][None, :]
        auc = (difference > 0).mean() + 0.5 * (difference == 0).mean()
        assert 0.7 < auc < 0.9, source


def test_people_label_honestly_and_models_do_not(full):
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for row in full.generate():
        gold = [full.gold_reward(row["prompt"], y) for y in row["responses"]]
        gaps[row["labeller"] == GOLDEN] += list(np.array(row["rewards"]) - gold)
    assert abs(np.mean(gaps[True])) < 0.1
    assert np.mean(gaps[False]) > 1.0


def test_human_labels_are_as_frequent_as_human_responses():
    rows = Testbed(TestbedConfig(prompts=3000, alpha=0.4)).generate()
    human = [s == GOLDEN for row in rows for s in row["sources"]]
    assert np.mean(human) == pytest.approx(0.4, abs=0.02)
    assert np.mean([row["labeller"] == GOLDEN for row in rows]) == pytest.approx(0.4, abs=0.04)


def test_label_noise_reverses_the_order_and_nothing_else():
    clean, noisy = (Testbed(TestbedConfig(prompts=50, label_noise=p)).generate() for p in (0.0, 1.0))
    for a, b in zip(clean, noisy, strict=True):
        assert a["responses"] == b["responses"]
        assert list(np.argsort(a["rewards"])) == list(np.argsort(b["rewards"])[::-1])


@pytest.mark.parametrize("level", [0.2, 0.4, 0.6])
def test_label_noise_leaves_texts_and_sources_alone_and_a_higher_level_contains_a_lower_one(level):
    rows = {p: Testbed(TestbedConfig(prompts=300, label_noise=p)).generate() for p in (0.0, level, level + 0.2)}
    reversed_at = {}
    for p, noisy in rows.items():
        for row, clean in zip(noisy, rows[0.0], strict=True):
            assert {k: v for k, v in row.items() if k != "rewards"} == {k: v for k, v in clean.items() if k != "rewards"}
        reversed_at[p] = {r["id"] for r, clean in zip(noisy, rows[0.0], strict=True) if r["rewards"] != clean["rewards"]}
    assert reversed_at[level] < reversed_at[level + 0.2]
    assert len(reversed_at[level]) / 300 == pytest.approx(level, abs=0.12)  # four standard errors


def test_unlabelled_hides_the_sources_of_that_share_of_records_and_changes_nothing_else(tmp_path):
    full = Testbed(TestbedConfig(prompts=300)).generate()
    some, more, all_ = (Testbed(TestbedConfig(prompts=300, unlabelled=p)).generate() for p in (0.3, 0.6, 1.0))
    for rows in (some, more, all_):
        for row, known in zip(rows, full, strict=True):
            assert row["sources"] in (known["sources"], [None] * 4)
            assert row | {"sources": None} == known | {"sources": None}
    hidden = [{r["id"] for r in rows if None in r["sources"]} for rows in (some, more, all_)]
    assert hidden[0] < hidden[1] < hidden[2]
    assert [len(h) / 300 for h in hidden] == pytest.approx([0.3, 0.6, 1.0], abs=0.12)
    table = pq.read_table(Testbed(TestbedConfig(prompts=5, unlabelled=1.0)).write(tmp_path / "hidden.parquet"))
    assert table.schema.field("sources").type == pa.list_(pa.string()), "a column of nulls is still one of names"


# ------------------------------------------------------------------------------------------------------- data


def test_the_default_mixture_is_the_one_it_always_was():
    """Texts and labels of all published figures; a change of this digest changes them all."""
    rows = Testbed(TestbedConfig(prompts=20)).generate() + Testbed(TestbedConfig(prompts=20)).generate_golden(20)
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "a1beb47f470e3c0b"


def test_one_source_per_record_keeps_the_mixture_and_names_the_labeller():
    rows = Testbed(TestbedConfig(prompts=2000, one_source_per_record=True)).generate()
    assert all(set(row["sources"]) == {row["labeller"]} and len(row["sources"]) == 4 for row in rows)
    golden = np.mean([row["labeller"] == "human" for row in rows])
    assert abs(golden - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_same_seed_same_bytes_and_another_seed_or_round_other_rows(tmp_path):
    config = TestbedConfig(prompts=30)
    files = [Testbed(config).write(tmp_path / name).read_bytes() for name in ("a.parquet", "b.parquet")]
    assert files[0] == files[1]
    rows = Testbed(config).generate()
    assert len({r["prompt"] for r in rows}) == len({r["id"] for r in rows}) == 30
    assert Testbed(TestbedConfig(prompts=30, seed=1)).generate() != rows
    assert not {r["id"] for r in Testbed(config, round=1).generate()} & {r["id"] for r in rows}


def test_drift_raises_the_shift_per_round():
    config = TestbedConfig(prompts=1, shift=1.0, drift=0.5)
    assert [Testbed(config, round=r).shift for r in range(3)] == [1.0, 1.5, 2.0]


def test_errors_name_what_is_allowed(full):
    with pytest.raises(ConfigError, match="no source 'vague'") as caught:
        full.log_density("vague", full.generate()[0]["prompt"], "A clear routine saves effort.")
    assert "did you mean 'vague-lm'" in caught.value.hint
    with pytest.raises(ConfigError, match="not one of the testbed's"):
        full.log_density(GOLDEN, "What?", "A clear routine saves effort.")
    with pytest.raises(ConfigError, match="exceeds the 768 distinct ones"):
        Testbed(TestbedConfig(prompts=1000, topics=2))


def test_the_golden_reference_has_prompts_of_its_own() -> None:
    testbed = Testbed(TestbedConfig(prompts=50))
    golden = testbed.generate_golden(30)
    assert len(golden) == 30
    assert not {row["prompt"] for row in golden} & {row["prompt"] for row in testbed.generate()}
    assert all(np.isfinite(testbed.log_density("human", row["prompt"], row["response"])) for row in golden)
    with pytest.raises(ConfigError, match="all 768 prompts are in the mixture"):
        Testbed(TestbedConfig(prompts=768, topics=2)).generate_golden(1)


def test_a_shifted_golden_reference_leans_towards_the_first_synthetic_source():
    """With golden_shift = shift it is that source; in between its density is exact: E_ref[q_golden/q_ref] = 1 (four standard errors)."""
    whole = Testbed(TestbedConfig(prompts=50, golden_shift=1.0))
    straight, leaning = (Testbed(TestbedConfig(prompts=50, golden_shift=g)) for g in (0.0, 0.5))
    rows = {bed: [tuple(row.values()) for row in bed.generate_golden(800)] for bed in (straight, leaning, whole)}
    for pair in rows[whole][:20]:
        assert whole.log_density(REFERENCE, *pair) == pytest.approx(whole.log_density("verbose-lm", *pair), abs=1e-12)
        assert straight.log_density(REFERENCE, *pair) == straight.log_density(GOLDEN, *pair)
    ratios = np.exp([leaning.log_density(GOLDEN, *p) - leaning.log_density(REFERENCE, *p) for p in rows[leaning]])
    assert ratios.mean() == pytest.approx(1.0, abs=4 * ratios.std() / math.sqrt(len(ratios)))
    assert means(straight, rows[straight], "filler") < means(leaning, rows[leaning], "filler") < means(whole, rows[whole], "filler")
    assert leaning.generate() == straight.generate(), "the mixture has its own golden source"


def test_prompts_of_other_data_are_refused_with_their_number(full):
    ours = [row["prompt"] for row in full.generate()[:3]]
    full.require_prompts(ours)
    with pytest.raises(DataError, match="2 of 5 prompts are not of the known mixture"):
        full.require_prompts([*ours, "What?", "Why?"])


def test_materialised_files_are_written_once_and_again_when_anything_changed(tmp_path: Path):
    config = TestbedConfig(prompts=10)
    data, golden = materialize(config, 7, tmp_path)
    assert (pq.read_table(data).num_rows, pq.read_table(golden).num_rows) == (10, 7)
    assert data.read_bytes() == Testbed(config).write(tmp_path / "direct.parquet").read_bytes()
    golden.write_bytes(b"touched")
    assert materialize(config, 7, tmp_path) == (data, golden)
    assert golden.read_bytes() == b"touched", "the marker agrees: nothing is written"
    materialize(config, 8, tmp_path)
    assert pq.read_table(golden).num_rows == 8
    golden.unlink()
    materialize(config, 8, tmp_path)
    assert pq.read_table(golden).num_rows == 8


def test_a_materialisation_that_broke_off_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """New data and the old golden reference, and then the old configuration again: the old marker must not vouch for them."""
    old, new = TestbedConfig(prompts=10), TestbedConfig(prompts=12)
    data, _ = materialize(old, 7, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(testbed.Testbed, "generate_golden", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            materialize(new, 7, tmp_path)
    materialize(old, 7, tmp_path)
    assert pq.read_table(data).num_rows == 10
