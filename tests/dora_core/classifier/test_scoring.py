"""The scoring pass against a plain one, row by row; work done ahead; batches; loading."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from dora_core.classifier import scoring as classifier_scoring
from dora_core.classifier.model import build_classifier, build_tokenizer
from dora_core.classifier.scaling import Scaling
from dora_core.classifier.scoring import CPU_BATCH, FittedClassifiers, Meta, inference_budget, one_ahead, read_meta, save_fold, save_meta
from dora_core.classifier.text_statistics import SurfaceBasis, surface_statistics
from dora_core.classifier.wide import ORDER_WEIGHT, WideModel
from dora_core.models.batching import token_batches
from tests.dora_core.classifier.examples import CONFIG, make_examples
from tests.dora_core.classifier.examples import META as FITTED_META
from tests.dora_core.classifier.test_wide import buckets_of

META = Meta(["a", "b"], ["human"], [1.0, 1.0], [Scaling(temperature=2.0), Scaling(temperature=0.5)], 2, CONFIG.model_dump(mode="json"))
EXAMPLES = make_examples(12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """(folder, tokenizer, models): two folds with random weights, every part of them in use."""
    folder, tokenizer, models = tmp_path_factory.mktemp("classifier"), build_tokenizer(EXAMPLES, CONFIG), []
    basis = SurfaceBasis.fit(surface_statistics(EXAMPLES.prompts, EXAMPLES.responses))
    for fold in range(2):
        torch.manual_seed(fold)
        model = build_classifier(CONFIG, tokenizer, WideModel(2, basis))
        for weight in (model.wide.ngram_weight, model.wide.surface_weight, model.wide.bias, model.head.weight, model.head.bias):
            torch.nn.init.normal_(weight, std=0.5)
        save_fold(model, folder / f"fold-{fold}")
        models.append(model.eval())
    save_meta(folder, tokenizer, META)
    return folder, tokenizer, models


def plain_logits(model, tokenizer, prompt: str, response: str) -> np.ndarray:
    """One row by loops over its n-grams and one unpadded forward pass: (S,), unscaled."""
    before = [tokenizer.cls_token_id, *tokenizer(prompt)["input_ids"][-CONFIG.max_prompt_tokens :], tokenizer.sep_token_id]
    own = [*tokenizer(response)["input_ids"][: CONFIG.max_response_tokens], tokenizer.sep_token_id]
    wide, basis = model.wide, SurfaceBasis(*(getattr(model.wide, name).numpy() for name in SurfaceBasis.__dataclass_fields__))
    weights = [w for order, w in enumerate(ORDER_WEIGHT) for _ in range(len(own) - order)]
    ngrams = sum(w * wide.ngram_weight[bucket].double() for bucket, w in zip(buckets_of(own), weights, strict=True))
    surface = torch.from_numpy(basis(surface_statistics([prompt], [response]))[0]) @ wide.surface_weight.double()
    with torch.inference_mode():
        hidden_LH = model.encoder(torch.tensor([[*before, *own]])).last_hidden_state[0, len(before) :]
        deep = model.head(hidden_LH.mean(dim=0))
    return (ngrams + surface + wide.bias + deep).numpy()


@pytest.mark.parametrize(("chunk", "budget"), [(4096, 16_384), (5, 256), (1, 40)])
def test_scores_are_those_of_a_plain_pass_row_by_row(saved, monkeypatch, chunk, budget):
    folder, tokenizer, models = saved
    monkeypatch.setattr(classifier_scoring, "CHUNK_ROWS", chunk)
    responses = [r * (1 + i % 3) for i, r in enumerate(EXAMPLES.responses)]
    scored = FittedClassifiers(folder, batch_tokens=budget).score(EXAMPLES.prompts, responses, EXAMPLES.fold_N)
    rows = zip(EXAMPLES.fold_N, EXAMPLES.prompts, responses, strict=True)
    plain = np.stack([plain_logits(models[fold], tokenizer, p, r) for fold, p, r in rows])
    np.testing.assert_allclose(scored.logits_NS, plain / [2.0, 0.5], atol=1e-5, rtol=1e-6)
    assert (scored.padded_N >= scored.tokens_N).all() and 0 <= scored.padding_waste < 0.5
    assert set(EXAMPLES.fold_N) == {0, 1}


def test_no_rows_are_no_scores(saved):
    scored = FittedClassifiers(saved[0], batch_tokens=256).score([], [], np.zeros(0, dtype=np.int64))
    assert scored.logits_NS.shape == (0, 2) and scored.padding_waste == 0.0


def test_every_fold_is_loaded_once_and_an_unused_encoder_never(saved, tmp_path: Path, monkeypatch):
    _, tokenizer, models = saved
    unused = build_classifier(CONFIG, tokenizer, models[1].wide)
    save_fold(models[0], tmp_path / "fold-0")
    save_fold(unused, tmp_path / "fold-1")
    save_meta(tmp_path, tokenizer, META)
    loaded, load = [], AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda folder, **options: loaded.append(folder.name) or load(folder, **options))
    scorer = FittedClassifiers(tmp_path, batch_tokens=256)
    for _ in range(2):
        scored = scorer.score(EXAMPLES.prompts, EXAMPLES.responses, EXAMPLES.fold_N)
    assert loaded == ["fold-0"]
    assert (scored.padded_N == scored.tokens_N)[EXAMPLES.fold_N == 1].all()


def test_on_a_cpu_a_batch_fits_the_cache(saved):
    _, tokenizer, models = saved
    rows = classifier_scoring.PairEncoder(tokenizer, 8, 24)(EXAMPLES.prompts * 300, EXAMPLES.responses * 300)
    batches = token_batches(rows.tokens.lengths, inference_budget(models[0], 10**9).tokens)
    longest = max(len(b) * rows.tokens.lengths[b].max() for b in batches)
    assert 0.9 * CPU_BATCH < longest * CONFIG.encoder.hidden_size <= CPU_BATCH


# ---------------------------------------------------------------------------------------------------------- work ahead


def test_the_next_result_is_computed_while_the_caller_uses_the_last():
    started = [threading.Event() for _ in range(4)]

    def double(i: int) -> int:
        started[i].set()
        return 2 * i

    seen = []
    for i, result in enumerate(one_ahead(double, range(4))):
        assert i == 3 or started[i + 1].wait(timeout=30)
        assert not any(event.is_set() for event in started[i + 2 :])  # bounded: one ahead, no more
        seen.append(result)
    assert seen == [0, 2, 4, 6] and list(one_ahead(double, [])) == []


def test_an_exception_ahead_reaches_the_caller_in_its_turn():
    def invert(i: int) -> float:
        return 1 / i

    results = one_ahead(invert, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_loaded_classifier_scores_each_row_with_its_fold_and_scaling(fitted):
    folder, examples, _, _, logits = fitted
    scored = FittedClassifiers(folder, batch_tokens=512).score(examples.prompts, examples.responses, examples.fold_N)
    np.testing.assert_allclose(scored.logits_NS[:, 0] * 2, logits[:, 0], atol=1e-4)
    np.testing.assert_allclose(scored.logits_NS[:, 1], np.interp(logits[:, 1], [-1.0, 1.0], [-0.5, 3.0]), atol=1e-4)
    assert read_meta(folder) == FITTED_META
    assert (scored.padded_N >= scored.tokens_N).all()
    swapped = FittedClassifiers(folder, batch_tokens=512).score(examples.prompts, examples.responses, 1 - examples.fold_N)
    assert np.abs(swapped.logits_NS - scored.logits_NS).max() > 0.1
    files = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors"}
