"""The log-linear part: sparse products against dense ones, the optimum's conditions, recovery of a known log-ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dora_core.classifier.text_statistics import STATISTICS, SurfaceBasis
from dora_core.classifier.wide import BIAS_PENALTY, BUCKETS, INNER_FOLDS, ORDER_WEIGHT, PRIMES, Design, Ngrams, WideModel, fit_wide
from dora_core.models.ragged import Ragged

TEXTS = st.lists(st.lists(st.integers(0, 30), max_size=8), min_size=1, max_size=8)


def dense(ngrams: Ngrams, columns: int) -> torch.Tensor:
    out = torch.zeros(len(ngrams.start) - 1, columns)
    for i in range(len(out)):
        for j in range(ngrams.start[i], ngrams.start[i + 1]):
            out[i, ngrams.index[j]] += ngrams.weight[j]
    return out


def rows(count: int, seed: int = 0) -> tuple[Ragged, np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of golden rows and of a source that tilts them by exp(1.5·(occurrences of token 3)); the exact log-ratio; statistics."""
    rng = np.random.default_rng(seed)
    golden = np.arange(count) % 2 == 0
    tilted = np.exp(1.5 * (np.arange(10) == 3))
    texts = [rng.choice(10, size=6, p=np.full(10, 0.1) if g else tilted / tilted.sum()).tolist() for g in golden]
    log_ratio = np.array([6 * np.log(tilted.sum() / 10) - 1.5 * t.count(3) for t in texts])
    statistics = np.tile([len(t) for t in texts], (len(STATISTICS), 1)).T.astype(float)
    return Ragged.of(texts), golden, log_ratio, statistics


def test_ngrams_are_summed_with_the_weight_of_their_order():
    ngrams = Ngrams.of(Ragged.of([[5, 6, 5, 6]]))
    codes = ngrams.index.tolist()
    assert len(codes) == 4 + 3 + 2 and codes[0] == codes[2] and codes[4] == codes[6] and codes[4] != codes[5]
    assert ngrams.weight.tolist() == pytest.approx([ORDER_WEIGHT[0]] * 4 + [ORDER_WEIGHT[1]] * 3 + [ORDER_WEIGHT[2]] * 2)
    ones = torch.ones(BUCKETS, 1)
    once, twice = Ngrams.of(Ragged.of([[5], [5, 5]])).times(ones).flatten().tolist()
    assert twice == pytest.approx(2 * once + ORDER_WEIGHT[1])  # a sum: no division by length


def buckets_of(ids: list[int]) -> list[int]:
    """Row by row, token by token: code(t_1 … t_k) = code(t_1 … t_{k−1})·31 + (t_k + 1)·prime_k, modulo 2³¹ − 1."""
    out = []
    for order in range(len(PRIMES)):
        for first in range(len(ids) - order):
            code = 0
            for prime, token in zip(PRIMES, ids[first : first + order + 1], strict=False):
                code = (code * 31 + (token + 1) * prime) % (2**31 - 1)
            out.append((code + order) % BUCKETS)
    return out


@given(st.lists(st.lists(st.integers(0, 200_000), max_size=6), max_size=6))
def test_ngrams_of_all_rows_at_once_are_those_of_each_row(texts):
    ngrams = Ngrams.of(Ragged.of(texts))
    assert ngrams.index.tolist() == [bucket for ids in texts for bucket in buckets_of(ids)]
    assert ngrams.start.diff().tolist() == [len(buckets_of(ids)) for ids in texts]


@given(TEXTS, st.integers(0, 100))
def test_sparse_products_equal_dense_ones(texts, seed):
    ngrams, buckets = Ngrams.of(Ragged.of(texts)).shared()
    full = dense(Ngrams.of(Ragged.of(texts)), BUCKETS)
    kept = ((full > 0).sum(dim=0) > 1).nonzero().flatten()
    assert buckets.tolist() == kept.tolist()
    expected = full[:, kept]
    torch.testing.assert_close(dense(ngrams, len(kept)), expected)
    generator = torch.Generator().manual_seed(seed)
    right, left = torch.randn(len(kept), 2, generator=generator), torch.randn(len(texts), 2, generator=generator)
    torch.testing.assert_close(ngrams.times(right), expected @ right, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ngrams.transposed(len(kept)).times(left), expected.T @ left, atol=1e-5, rtol=1e-4)


def test_the_fit_is_the_optimum():
    """At θ the gradient of the penalised log-loss, taken by autograd on the dense design, vanishes."""
    texts, golden, _, _ = rows(300)
    ngrams, buckets = Ngrams.of(texts).shared()
    design = Design(ngrams, len(buckets), torch.randn(300, 2, generator=torch.Generator().manual_seed(0)))
    target = torch.from_numpy(golden).float()[:, None].repeat(1, 2)
    weight, penalty = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([2.0, 20.0])
    theta = design.fit(target, weight, penalty).double().requires_grad_()
    matrix = torch.cat([dense(ngrams, len(buckets)), design.dense, torch.ones(300, 1)], dim=1).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(matrix @ theta, target.double(), weight=weight.double(), reduction="sum")
    positive, total = (weight * target).sum(dim=0), weight.sum(dim=0)
    prior = torch.log((positive + 0.5) / (total - positive + 0.5))
    (loss + 0.5 * (penalty * theta[:-1].square()).sum() + 0.5 * BIAS_PENALTY * (theta[-1] - prior).square().sum()).backward()
    assert theta.grad.abs().max() < 0.05  # the gradient at θ = 0 is about 20


def test_a_known_log_ratio_is_recovered_and_more_rows_bring_it_closer():
    errors = []
    for count in (200, 2000):
        texts, golden, log_ratio, statistics = rows(count)
        target, weight = golden.astype(np.float32)[:, None], np.ones((count, 1), dtype=np.float32)
        model, held, (penalty,) = fit_wide(texts, statistics, target, weight, np.arange(count) // 2 % INNER_FOLDS)
        fresh, _, exact, fresh_statistics = rows(1000, seed=1)
        logits = model(fresh, fresh_statistics)[:, 0].numpy()
        errors.append(float(np.sqrt(np.mean((logits - exact) ** 2))))
        assert np.corrcoef(logits, exact)[0, 1] > 0.9
        assert np.corrcoef(held[:, 0], log_ratio)[0, 1] > 0.8 and penalty > 0
    assert errors[1] < 0.3 and errors[1] < errors[0]


def test_a_head_without_rows_stays_finite():
    texts, golden, _, statistics = rows(60)
    weight = np.stack([np.ones(60), golden], axis=1).astype(np.float32)  # head 1: only golden rows
    target = np.repeat(golden.astype(np.float32)[:, None], 2, axis=1)
    model, held, _ = fit_wide(texts, statistics, target, weight, np.arange(60) % INNER_FOLDS)
    assert np.isfinite(held).all() and model(texts, statistics).abs().max() < 20


def test_saved_constants_are_enough():
    texts, golden, _, statistics = rows(200)
    target, weight = golden.astype(np.float32)[:, None], np.ones((200, 1), dtype=np.float32)
    model, _, _ = fit_wide(texts, statistics, target, weight, np.arange(200) % INNER_FOLDS)
    again = WideModel(1, SurfaceBasis.fit(np.zeros((1, len(STATISTICS)))))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(texts, statistics), model(texts, statistics))
    assert torch.equal(model(texts[np.arange(3)], statistics[:3]), model(texts, statistics)[:3])
