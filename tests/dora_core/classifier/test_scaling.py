"""Temperature and isotonic scaling: recovery, smoothing, monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.classifier.scaling import Scaling, fit_scaling, fit_temperature, isotonic, log_loss, overlap_weights


@st.composite
def labelled_logits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits, with ties, and labels of both kinds."""
    rows = draw(st.lists(st.tuples(st.integers(-40, 40), st.booleans()), min_size=2, max_size=60))
    logits, golden = np.array([z / 4 for z, _ in rows]), np.array([g for _, g in rows])
    golden[:2] = [True, False]
    return logits, golden


def test_temperature_recovers_the_scale_and_never_worsens():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    golden = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(3 * logits, golden) == pytest.approx(3.0, rel=0.1)
    assert fit_scaling("temperature", logits[:4], np.ones(4, dtype=bool)) == Scaling()
    for _ in range(20):
        z, y = rng.normal(size=10), rng.random(10) < 0.5
        assert log_loss(z / fit_temperature(z, y), y) <= log_loss(z, y)


def test_isotonic_by_hand():
    # Sorted: 0 1 0 | 1, with a golden pseudo-row at the lowest logit and another one at the highest:
    # (2 rows, 1 golden) (1, 1) (1, 0) (2, 1) → shares ½ 1 0 ½: 1 0 pool to ½, which pools with ½ on both sides.
    at, share = isotonic(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True]))
    assert at.tolist() == pytest.approx([(2 * 0 + 1 + 2 + 2 * 3) / 6]) and share.tolist() == [0.5]
    at, share = isotonic(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True]))
    assert share.tolist() == pytest.approx([1 / 3, 2 / 3]) and at.tolist() == pytest.approx([-5 / 3, 5 / 3])


def test_isotonic_recovers_a_bent_map():
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 2, size=50_000)
    truth = np.minimum(raw, 0.5)  # saturates, as the ratio of a mixture that contains golden does
    scale = fit_scaling("isotonic", raw, rng.random(50_000) < 1 / (1 + np.exp(-truth)))
    inner = np.linspace(-3, 4, 50)
    assert np.abs(scale(inner) - np.minimum(inner, 0.5)).max() < 0.3


@given(labelled_logits())
def test_isotonic_is_monotone_open_and_never_worse_than_the_prior(rows):
    logits, golden = rows
    scale = fit_scaling("isotonic", logits, golden)
    assert (np.diff(scale.at) > 0).all() and (np.diff(scale.to) > 0).all()
    grid = np.linspace(-1e4, 1e4, 999)
    assert np.isfinite(scale(grid)).all() and (np.diff(scale(grid)) >= 0).all()
    n = len(logits)  # every block has at most n rows and a pseudo-row of the other kind
    assert np.abs(scale(grid)).max() <= np.log(n) + 1e-9


@given(labelled_logits(), st.floats(0.1, 10), st.floats(-5, 5))
def test_isotonic_does_not_depend_on_the_scale_of_its_input(rows, factor, offset):
    logits, golden = rows
    ours = fit_scaling("isotonic", logits, golden)(logits)
    np.testing.assert_allclose(fit_scaling("isotonic", logits * factor + offset, golden)(logits * factor + offset), ours, atol=1e-6)


@given(labelled_logits(), st.randoms(use_true_random=False))
def test_isotonic_does_not_depend_on_the_order_of_rows(rows, random):
    logits, golden = rows
    order = list(range(len(logits)))
    random.shuffle(order)
    ours, theirs = fit_scaling("isotonic", logits, golden), fit_scaling("isotonic", logits[order], golden[order])
    np.testing.assert_allclose(theirs.at, ours.at)
    np.testing.assert_allclose(theirs.to, ours.to)


def test_none_changes_nothing():
    assert fit_scaling("none", np.array([1.0, 2.0]), np.array([True, False])) == Scaling()


def test_overlap_weights_undo_the_prompt_by_hand():
    """r = log 3: golden rows weigh 2·¼, others 2·¾; a joint odds of 3·w becomes w. All are 1 at r = 0."""
    golden = np.array([True, False, True, False])
    weights = overlap_weights(np.array([np.log(3.0), np.log(3.0), 0.0, 0.0]), golden)
    assert weights == pytest.approx([0.5, 1.5, 1.0, 1.0])
    assert np.isfinite(overlap_weights(np.array([1e9, 1e9]), np.array([True, False]))).all()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_scaling_with_overlap_weights_finds_the_map_given_the_prompt(kind):
    """Raw logits are twice the true ones given the prompt, and prompts alone separate strongly: the scaling must not learn the prompt."""
    rng = np.random.default_rng(0)
    true, prompt = rng.normal(size=60_000), rng.choice([-2.0, 2.0], size=60_000)
    golden = rng.random(60_000) < 1 / (1 + np.exp(-(true + prompt)))
    scale = fit_scaling(kind, 2 * true, golden, overlap_weights(prompt, golden))
    at = np.linspace(-1.5, 1.5, 7)
    np.testing.assert_allclose(scale(2 * at), at, atol=0.25)  # isotonic: a staircase
