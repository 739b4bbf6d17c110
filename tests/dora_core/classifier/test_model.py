"""The two parts of a classifier, masks and batches, cross-fitting, save and load."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from dora_core.classifier.diagnostics import auc
from dora_core.classifier.fit import fit_fold
from dora_core.classifier.model import (
    GOLDEN,
    LAYERS_AS_BERT,
    Examples,
    PairEncoder,
    SourceClassifier,
    build_classifier,
    build_tokenizer,
    collate,
)
from dora_core.classifier.scaling import Scaling
from dora_core.classifier.scoring import FittedClassifiers, Meta, read_meta, save_meta
from dora_core.classifier.text_statistics import STATISTICS, SurfaceBasis
from dora_core.classifier.wide import WideModel
from dora_core.config.method import ClassifierConfig, ModelConfig
from dora_core.data.records import fold_of
from dora_core.errors import ConfigError, ModelError
from dora_core.models.batching import token_batches

TINY = ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=400)
CONFIG = ClassifierConfig(encoder=TINY, folds=2, epochs=4, batch_tokens=1024, max_prompt_tokens=8, max_response_tokens=24)
SCALING = [Scaling(temperature=2.0), Scaling(at=[-1.0, 1.0], to=[-0.5, 3.0])]
META = Meta(["a", "b"], ["human"], [1.0, 1.0], SCALING, CONFIG.folds, CONFIG.model_dump(mode="json"))
WIDE = WideModel(2, SurfaceBasis.fit(np.zeros((1, len(STATISTICS)))))
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
    save_meta(folder, tokenizer, META)
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


def test_loaded_classifier_scores_each_row_with_its_fold_and_scaling(fitted):
    folder, examples, _, _, logits = fitted
    scored = FittedClassifiers(folder, batch_tokens=512).score(examples.prompts, examples.responses, examples.fold_N)
    np.testing.assert_allclose(scored.logits_NS[:, 0] * 2, logits[:, 0], atol=1e-4)
    np.testing.assert_allclose(scored.logits_NS[:, 1], np.interp(logits[:, 1], [-1.0, 1.0], [-0.5, 3.0]), atol=1e-4)
    assert read_meta(folder) == META
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
    row = PairEncoder(tokenizer, 2, 1)(["mild bread soup and wisdom"], ["the of with"])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row.tokens.values.tolist() == [cls, *prompt[-2:], sep, response[0], sep] and row.start_N.tolist() == [4]
    assert row.responses.values.tolist() == [response[0], sep]
    bare = PairEncoder(tokenizer, 0, 8)(["mild bread soup"], ["the"])
    assert bare.tokens.values[:2].tolist() == [cls, sep]


def test_padding_and_batch_mates_do_not_change_a_score(fitted):
    examples, tokenizer = fitted[1], fitted[2]
    torch.manual_seed(0)
    model = build_classifier(CONFIG, tokenizer, WIDE).eval()
    torch.nn.init.normal_(model.head.weight)
    rows = PairEncoder(tokenizer, 8, 24)(["q", "a longer question"], ["soup", " ".join(examples.responses[:3])])
    device = torch.device("cpu")
    with torch.inference_mode():
        together = model(collate(rows, tokenizer.pad_token_id, device))
        alone = torch.cat([model(collate(rows[np.array([i])], tokenizer.pad_token_id, device)) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [*sorted(LAYERS_AS_BERT), "distilbert"])
def test_leaving_the_prompt_out_of_the_last_layer_changes_no_score(fitted, kind):
    """Against the mean over the response of what the encoder alone gives, for each family and one without the shortcut."""
    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, max_position_embeddings=64, pad_token_id=0)).eval()
    model = SourceClassifier(encoder, WIDE).eval()
    torch.nn.init.normal_(model.head.weight)
    rows = PairEncoder(fitted[2], 8, 24)(["q", "a longer question", "q"], ["soup", "mild bread soup and wisdom", "grand cosmic"])
    batch = collate(rows, 0, torch.device("cpu"))
    with torch.inference_mode():
        hidden_NLH = encoder(input_ids=batch.ids, attention_mask=batch.attention.long()).last_hidden_state
        expected = torch.stack([model.head(hidden_LH[own].mean(dim=0)) for hidden_LH, own in zip(hidden_NLH, batch.response, strict=True)])
        torch.testing.assert_close(model(batch), expected, atol=1e-6, rtol=1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(20, 200), st.booleans())
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, training):
    batches = token_batches(lengths, budget, np.random.default_rng(0) if training else None)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in batches)


def test_input_longer_than_the_encoder_is_refused(fitted, tmp_path):
    local = ClassifierConfig(encoder=ModelConfig(source=str(fitted[0] / "fold-0")), max_prompt_tokens=8, max_response_tokens=25)
    fitted[2].save_pretrained(fitted[0] / "fold-0")
    with pytest.raises(ConfigError, match=r"= 36, but .* has 35 positions") as error:
        build_classifier(local, fitted[2], WIDE)
    assert "at most 32" in error.value.hint


def test_a_tokenizer_without_separator_is_refused(fitted):
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(ModelError, match="separator"):
        PairEncoder(PreTrainedTokenizerFast(tokenizer_object=fitted[2].backend_tokenizer), 8, 8)
