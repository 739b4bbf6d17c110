"""The shared encoder, its masks and batches, cross-fitting, save and load; the diagnostics against arithmetic and known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dora_core.batching import token_batches
from dora_core.classifier import (
    GOLDEN,
    Examples,
    FittedClassifiers,
    HashedNgrams,
    Meta,
    PairEncoder,
    build_classifier,
    build_tokenizer,
    collate,
    fit_fold,
    save_meta,
)
from dora_core.classifier_report import (
    auc,
    auc_interval,
    diagnose,
    fit_temperature,
    log_loss,
    prompt_only_logits,
    reliability,
    within_prompt_auc,
)
from dora_core.config import ClassifierConfig, ModelConfig
from dora_core.errors import ConfigError, ModelError
from dora_core.records import fold_of

TINY = ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=400)
CONFIG = ClassifierConfig(encoder=TINY, folds=2, epochs=4, batch_tokens=1024, max_prompt_tokens=8, max_response_tokens=24)
PLAIN = {GOLDEN: "mild bread soup", 0: "grand cosmic wisdom", 1: "mild cosmic soup"}


def make_examples(prompts: int = 150, seed: int = 0) -> Examples:
    """Every prompt is answered by all three; each has words of its own among common ones."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(prompts):
        for head, words in PLAIN.items():
            text = " ".join(rng.choice([*words.split(), "and", "the", "of", "with"], size=8))
            rows.append((f"question {p}", text, head, p * 2**40 + 12345))
    columns = list(zip(*rows, strict=True))
    hashes = np.array(columns[3], dtype=np.uint64)
    return Examples(columns[0], columns[1], np.array(columns[2]), hashes, fold_of(hashes, CONFIG.folds))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    folder, examples = tmp_path_factory.mktemp("classifier"), make_examples()
    tokenizer = build_tokenizer(examples, CONFIG)
    fits = [fit_fold(examples, 2, tokenizer, CONFIG, fold, folder / f"fold-{fold}") for fold in range(CONFIG.folds)]
    save_meta(folder, tokenizer, Meta(["a", "b"], ["human"], [1.0, 1.0], [2.0, 0.5], CONFIG.folds, CONFIG.model_dump(mode="json")))
    logits = np.zeros((len(examples), 2))
    for fit in fits:
        logits[examples.fold_N == fit.fold] = fit.logits_NS
    return folder, examples, tokenizer, fits, logits


# --------------------------------------------------------------------------------------------------------------- fitting


def test_held_out_prompts_are_told_apart(fitted):
    _, examples, _, fits, logits = fitted
    golden = examples.head_N == GOLDEN
    for head in (0, 1):
        own = golden | (examples.head_N == head)
        assert auc(logits[own, head], golden[own])[0] > 0.8
    assert all(fit.curve[-1]["loss"] < fit.curve[0]["loss"] for fit in fits)


def test_loaded_classifier_scores_each_row_with_its_fold_and_temperature(fitted):
    folder, examples, _, _, logits = fitted
    scored = FittedClassifiers(folder, batch_tokens=512).score(examples.prompts, examples.responses, examples.fold_N)
    np.testing.assert_allclose(scored.logits_NS * [2.0, 0.5], logits, atol=1e-4)
    assert (scored.padded_N >= scored.tokens_N).all()
    swapped = FittedClassifiers(folder, batch_tokens=512).score(examples.prompts, examples.responses, 1 - examples.fold_N)
    assert np.abs(swapped.logits_NS - scored.logits_NS).max() > 0.1
    files = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors"}


def test_a_folds_model_never_sees_its_prompts(fitted, tmp_path):
    """Other labels and texts in fold 0 change nothing about fold 0's model."""
    folder, examples, tokenizer, _, _ = fitted
    mine = examples.fold_N == 0
    nonsense = [r if not m else "zebra" for r, m in zip(examples.responses, mine, strict=True)]
    other = Examples(examples.prompts, nonsense, examples.head_N, examples.prompt_hash_N, examples.fold_N)
    fit_fold(other, 2, tokenizer, CONFIG, 0, tmp_path)
    for name in ("model.safetensors", "heads.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / "fold-0" / name).read_bytes()
    fit_fold(other, 2, tokenizer, CONFIG, 1, tmp_path)  # fold 1's model does see them
    assert (tmp_path / "heads.safetensors").read_bytes() != (folder / "fold-1/heads.safetensors").read_bytes()


def test_posterior_follows_the_training_counts(tmp_path):
    """No signal, three times as many negatives as positives: c → 1/4, so γ·c/(1 − c) → 1."""
    hashes = np.arange(400, dtype=np.uint64) << np.uint64(20)
    head = np.where(np.arange(400) % 4 == 0, GOLDEN, 0)
    examples = Examples(["q"] * 400, ["the same text"] * 400, head, hashes, fold_of(hashes, 2))
    fit = fit_fold(examples, 1, build_tokenizer(examples, CONFIG), CONFIG, 0, tmp_path)
    assert 1 / (1 + np.exp(-fit.logits_NS.mean())) == pytest.approx(0.25, abs=0.05)


def test_targets_and_mask():
    examples = make_examples(1)
    targets, mask = examples.targets(2)
    assert mask.tolist() == [[True, True], [True, False], [False, True]]
    assert targets[mask].tolist() == [1.0, 1.0, 0.0, 0.0]


# ----------------------------------------------------------------------------------------------------------------- input


def test_prompts_keep_their_end_and_responses_their_beginning(fitted):
    tokenizer = fitted[2]
    prompt, response = tokenizer("mild bread soup and wisdom", add_special_tokens=False)["input_ids"], tokenizer("the of with")["input_ids"]
    (row,) = PairEncoder(tokenizer, 2, 1)(["mild bread soup and wisdom"], ["the of with"])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row.ids == [cls, *prompt[-2:], sep, response[0], sep] and row.start == 4
    (bare,) = PairEncoder(tokenizer, 0, 8)(["mild bread soup"], ["the"])
    assert bare.ids[:2] == [cls, sep]


def test_padding_and_batch_mates_do_not_change_a_score(fitted):
    examples, tokenizer = fitted[1], fitted[2]
    torch.manual_seed(0)
    model = build_classifier(CONFIG, tokenizer, 2).eval()
    torch.nn.init.normal_(model.ngrams.weight.weight)
    rows = PairEncoder(tokenizer, 8, 24)(["q", "a longer question"], ["soup", " ".join(examples.responses[:3])])
    device = torch.device("cpu")
    with torch.inference_mode():
        together = model(collate(rows, tokenizer.pad_token_id, device))
        alone = torch.cat([model(collate([r], tokenizer.pad_token_id, device)) for r in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_ngrams_read_the_response_only_and_scale_with_the_root_of_their_number():
    torch.manual_seed(0)
    model = HashedNgrams(1)
    torch.nn.init.ones_(model.weight.weight)
    ids, mask = torch.tensor([[7, 8, 9, 4, 5, 0]]), torch.tensor([[False, False, True, True, True, False]])
    assert model(ids, mask).item() == pytest.approx(6 / math.sqrt(6))  # 3 unigrams, 2 bigrams, 1 trigram, each of weight 1
    torch.nn.init.normal_(model.weight.weight)
    assert torch.equal(model(ids, mask), model(torch.tensor([[1, 2, 9, 4, 5, 3]]), mask))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(20, 200), st.booleans())
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, training):
    batches = token_batches(lengths, budget, np.random.default_rng(0) if training else None)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in batches)


def test_input_longer_than_the_encoder_is_refused(fitted, tmp_path):
    local = ClassifierConfig(encoder=ModelConfig(source=str(fitted[0] / "fold-0")), max_prompt_tokens=8, max_response_tokens=25)
    fitted[2].save_pretrained(fitted[0] / "fold-0")
    with pytest.raises(ConfigError, match=r"= 36, but .* has 35 positions") as error:
        build_classifier(local, fitted[2], 1)
    assert "at most 32" in error.value.hint


def test_a_tokenizer_without_separator_is_refused(fitted):
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(ModelError, match="separator"):
        PairEncoder(PreTrainedTokenizerFast(tokenizer_object=fitted[2].backend_tokenizer), 8, 8)


# ----------------------------------------------------------------------------------------------------------- diagnostics


def test_auc_by_hand():
    scores, golden = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(scores, golden)[0] == (1 + 0.5 + 1 + 1) / 4  # pairs: .4>.1, .4=.4, .8>.1, .8>.4
    weights = np.array([[2.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(auc(scores, golden, weights), [1.0, np.nan])


@given(st.integers(0, 1000))
def test_auc_equals_the_count_of_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, golden = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[golden] for b in scores[~golden]]
    assert auc(scores, golden)[0] == pytest.approx(np.mean(pairs), nan_ok=True)


def test_auc_interval_is_wider_when_rows_of_a_prompt_repeat():
    rng = np.random.default_rng(0)
    golden = np.arange(200) % 2 == 0
    scores = rng.normal(size=200) + golden
    one_each = auc_interval(scores, golden, np.arange(200, dtype=np.uint64))
    repeated = auc_interval(np.tile(scores, 4), np.tile(golden, 4), np.tile(np.arange(200, dtype=np.uint64), 4))
    assert one_each[0] < auc(scores, golden)[0] < one_each[1]
    assert repeated == pytest.approx(one_each, abs=0.01)  # copies add no information


def test_within_prompt_auc_ignores_the_prompt():
    prompts, golden = np.array([1, 1, 2, 2, 3], dtype=np.uint64), np.array([True, False, True, False, True])
    assert within_prompt_auc(np.array([0.2, 0.1, 0.9, 0.8, 0.0]), golden, prompts) == 1.0
    assert within_prompt_auc(np.array([0.2, 0.1, 0.7, 0.8, 0.0]), golden, prompts) == 0.5


def test_temperature_recovers_the_scale_and_never_worsens():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    golden = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(3 * logits, golden) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(logits[:4], np.ones(4, dtype=bool)) == 1.0
    for _ in range(20):
        z, y = rng.normal(size=10), rng.random(10) < 0.5
        assert log_loss(z / fit_temperature(z, y), y) <= log_loss(z, y)


def test_reliability_by_hand():
    error, bins = reliability(np.array([0.12, 0.18, 0.95, 1.0]), np.array([False, True, True, True]))
    assert bins["count"] == [2, 2] and bins["accuracy"] == [0.5, 1.0]
    assert bins["confidence"] == pytest.approx([0.15, 0.975])
    assert error == pytest.approx(0.5 * 0.35 + 0.5 * 0.025)


def test_prompt_only_finds_sources_that_answer_other_prompts_and_warns():
    base = make_examples(120)
    leak = [f"{'tell me about' if h == 0 else 'compute'} {p}" for p, h in zip(base.prompts, base.head_N, strict=True)]
    hashes = base.prompt_hash_N + np.arange(len(base), dtype=np.uint64)
    examples = Examples(leak, base.responses, base.head_N, hashes, fold_of(hashes, 2))
    logits = prompt_only_logits(examples, 2, build_tokenizer(examples, CONFIG), 2, seed=0)
    table, warnings = diagnose(examples, ["a", "b"], logits, [1.0, 1.0], logits)
    assert table["a"]["prompt_only_auc"] > 0.9 > 0.65 > table["b"]["prompt_only_auc"]
    assert any(w.startswith("a: the prompt alone") for w in warnings) and not any(w.startswith("b: the prompt") for w in warnings)


def test_diagnose_on_a_length_cue():
    n = 200
    golden = np.arange(n) % 2 == 0
    responses = ["short" if g else "a much longer answer" for g in golden]
    hashes = np.arange(n, dtype=np.uint64)
    examples = Examples(["q"] * n, responses, np.where(golden, GOLDEN, 0), hashes, fold_of(hashes, 2))
    logits = np.random.default_rng(0).normal(size=(n, 1)) + 2 * golden[:, None]
    table, warnings = diagnose(examples, ["gpt"], logits, [1.0], np.zeros((n, 1)))
    assert table["gpt"]["length_only_auc"] == 1.0 and table["gpt"]["prompt_only_auc"] == 0.5 and table["gpt"]["gamma"] == 1.0
    assert table["gpt"]["within_prompt_auc"] is None  # no prompt has both
    assert [w for w in warnings if "length alone" in w]


def test_a_source_too_small_to_judge_is_none_and_named():
    hashes = np.arange(10, dtype=np.uint64)
    examples = Examples(["q"] * 10, ["r"] * 10, np.array([GOLDEN] * 10), hashes, fold_of(hashes, 2))
    table, warnings = diagnose(examples, ["rare"], np.zeros((10, 1)), [1.0], np.zeros((10, 1)))
    assert table["rare"]["auc"] is None and table["rare"]["n"] == 0
    assert warnings[0].startswith("rare: only 0")
