"""Fitting a fold: the two parts, held-out prompts, class shares, and determinism."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dora_core.classifier.diagnostics import auc
from dora_core.classifier.fit import fit_fold
from dora_core.classifier.model import GOLDEN, Examples, build_tokenizer
from dora_core.classifier.scoring import FittedClassifiers, save_meta
from dora_core.data.records import fold_of
from tests.dora_core.classifier.examples import CONFIG, META, make_examples


def test_held_out_prompts_are_told_apart(fitted):
    _, examples, _, fits, logits = fitted
    golden = examples.head_N == GOLDEN
    for head in (0, 1):
        own = golden | (examples.head_N == head)
        assert auc(logits[own, head], golden[own])[0] > 0.8
    assert all(fit.curve[0]["step"] == 0 and fit.curve[-1]["step"] > 0 for fit in fits)


def test_the_deep_part_learns_what_the_wide_part_cannot_and_is_kept(tmp_path):
    """Synthetic texts have the same words in another order, too far apart for n-grams."""
    rng, rows = np.random.default_rng(0), []
    for p in range(600):
        for head, (first, second) in {GOLDEN: ("soup", "bread"), 0: ("bread", "soup")}.items():
            a, b, c, d, e, f = rng.choice(["and", "the", "of", "with"], size=6)
            rows.append((f"question {p}", f"{a} {first} {b} {c} {d} {second} {e} {f}", head, p * 2**40 + 12345 + (p << 17)))
    prompts, responses, head, hashes = zip(*rows, strict=True)
    hashes = np.array(hashes, dtype=np.uint64)
    examples = Examples(prompts, responses, np.array(head), hashes, fold_of(hashes, 2))
    config = CONFIG.model_copy(update={"epochs": 12, "learning_rate": 3e-3})
    fit = fit_fold(examples, 1, build_tokenizer(examples, config), config, 0, tmp_path)
    assert fit.deep and fit.curve[-1]["validation_loss"] < 0.5 * fit.curve[0]["validation_loss"]
    mine = examples.fold_N == 0
    assert auc(fit.logits_NS[:, 0], examples.head_N[mine] == GOLDEN)[0] > 0.9


@pytest.mark.parametrize(
    ("settings", "tried"),
    [({"deep": "auto", "deep_from": 10**6}, False), ({"deep": "auto", "deep_from": 30}, True), ({"deep": "never"}, False)],
)
def test_the_encoder_is_tried_from_a_number_of_rows_on(tmp_path, settings, tried):
    """40 prompts with three rows each, half of them in the other fold."""
    examples, config = make_examples(40), CONFIG.model_copy(update=settings | {"epochs": 1})
    fit = fit_fold(examples, 2, build_tokenizer(examples, config), config, 0, tmp_path)
    assert (fit.curve[-1]["step"] > 0) is tried and (tried or not fit.deep)
    assert fit.curve[0]["step"] == 0, "the loss without it is known in any case"


def test_without_signal_the_deep_part_is_dropped_and_the_encoder_not_run(tmp_path):
    examples = make_examples(400)
    shuffled = dataclasses.replace(examples, head_N=np.random.default_rng(0).permutation(examples.head_N))
    tokenizer = build_tokenizer(examples, CONFIG)
    fits = [fit_fold(shuffled, 2, tokenizer, CONFIG, fold, tmp_path / f"fold-{fold}") for fold in range(2)]
    assert not any(fit.deep for fit in fits)
    assert all(np.abs(fit.logits_NS).mean() < 0.5 for fit in fits)  # balanced classes, hence logits near 0
    save_meta(tmp_path, tokenizer, META)
    for encoder in tmp_path.glob("fold-*/model.safetensors"):
        encoder.unlink()
    scored = FittedClassifiers(tmp_path, batch_tokens=512).score(examples.prompts, examples.responses, examples.fold_N)
    np.testing.assert_allclose(scored.logits_NS[examples.fold_N == 0, 0] * 2, fits[0].logits_NS[:, 0], atol=1e-5)
    assert scored.padding_waste == 0.0


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


def test_progress_counts_the_steps_and_the_curve_begins_with_the_wide_part_alone(tmp_path):
    examples, steps = make_examples(60), []
    config = CONFIG.model_copy(update={"epochs": 1})
    fit = fit_fold(examples, 2, build_tokenizer(examples, config), config, 0, tmp_path, progress=lambda *at: steps.append(at))
    total = steps[0][1]
    assert steps == [(i + 1, total) for i in range(len(steps))] and total >= len(steps) > 0
    assert fit.curve[0]["step"] == 0 and fit.curve[-1]["step"] == len(steps)
    assert fit.fold == 0 and fit.logits_NS.shape == ((examples.fold_N == 0).sum(), 2)


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone(tmp_path):
    import torch

    examples = make_examples(40)
    config = CONFIG.model_copy(update={"epochs": 1})
    tokenizer, before = build_tokenizer(examples, config), torch.get_rng_state()
    for name in ("a", "b"):
        fit_fold(examples, 2, tokenizer, config, 1, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model.safetensors", "heads.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_handful_of_prompts_fits_the_wide_part_alone(tmp_path):
    """Without validation rows the gain of the deep part cannot be measured."""
    hashes = (np.arange(12, dtype=np.uint64) // np.uint64(3) + np.uint64(1)) << np.uint64(17)  # slices 1 to 4: none is 0
    examples = dataclasses.replace(make_examples(4), prompt_hash_N=hashes, fold_N=np.arange(12) // 3 % 2)
    fit = fit_fold(examples, 2, build_tokenizer(examples, CONFIG), CONFIG, 0, tmp_path)
    assert not fit.deep and fit.curve == [] and np.isfinite(fit.logits_NS).all()
