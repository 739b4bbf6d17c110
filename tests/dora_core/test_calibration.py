"""The three forms of h against exact densities and arithmetic by hand; guarantees of normalise, cap and temper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.calibration import (
    aggregate,
    calibrate,
    density_ratios,
    effective_sample_size,
    factor,
    given_prompt,
    mixture_shares,
    paper_factor,
    probabilities,
    prompt_shares,
    quantiles,
    released_factor,
    temper_for_floor,
)
from dora_core.config.method import CalibrationConfig, TestbedConfig
from dora_core.errors import ConfigError
from dora_core.testbed.mixture import Testbed

# A 1-D Gaussian mixture: golden N(0, 1), synthetic sources on both sides of it, α = .3, balanced classifiers.
MEANS, SHARES = np.array([0.0, -3.0, -0.5, 1.5]), np.array([0.3, 0.3, 0.2, 0.2])


@pytest.fixture(scope="module")
def gaussian():
    rng = np.random.default_rng(0)
    source = rng.choice(4, size=200_000, p=SHARES)
    y = rng.normal(MEANS[source])
    log_q = -0.5 * (y[:, None] - MEANS) ** 2  # up to one constant that cancels in every ratio
    true = np.exp(log_q[:, 0]) / (np.exp(log_q) @ SHARES)
    return source, log_q[:, :1] - log_q[:, 1:], true


def test_mixture_is_the_exact_ratio(gaussian):
    source, logits, true = gaussian
    for gamma in (np.ones(3), np.array([0.5, 2.0, 7.0])):  # c comes from unequal counts, γ undoes it
        c = probabilities(logits - np.log(gamma))
        h = factor("mixture", c, gamma, SHARES, source)
        np.testing.assert_allclose(h, true, rtol=1e-12)
        assert h.max() <= 1 / SHARES[0]


def test_mixture_with_exact_densities_is_the_testbeds_ratio():
    """c from exact log-densities and unequal counts, as a perfect classifier on such a training set would give it."""
    testbed = Testbed(TestbedConfig(prompts=50, seed=3))
    rows = [(row["prompt"], y, s) for row in testbed.generate() for y, s in zip(row["responses"], row["sources"], strict=True)]
    log_q = np.array([[testbed.log_density(s, prompt, y) for s in testbed.sources] for prompt, y, _ in rows])
    shares, gamma = np.array([testbed.shares[s] for s in testbed.sources]), np.array([0.4, 1.7, 3.0])
    own = np.array([testbed.sources.index(s) for _, _, s in rows])
    c = 1 / (1 + gamma * np.exp(log_q[:, 1:] - log_q[:, :1]))  # N_0·Q_0 / (N_0·Q_0 + N_i·Q_i)
    h = factor("mixture", c, gamma, shares, own)
    np.testing.assert_allclose(h, [testbed.true_ratio(prompt, y) for prompt, y, _ in rows], rtol=1e-6)


def test_unlabelled_rows_leave_the_mixture_exact():
    """Half of the responses are of the unlabelled mixture U itself; the golden share of the labelled rest may be 0."""
    rng = np.random.default_rng(0)
    log_q = rng.normal(0, 2, size=(500, 3))  # golden, a named source, a hidden one
    unlabelled = np.logaddexp(np.log(0.3) + log_q[:, 0], np.log(0.7) + log_q[:, 2])
    for alpha in (0.0, 0.2):
        shares = np.array([alpha, 0.5 - alpha, 0.5])
        p = alpha * np.exp(log_q[:, 0]) + shares[1] * np.exp(log_q[:, 1]) + 0.5 * np.exp(unlabelled)
        w = np.exp(log_q[:, :1] - np.stack([log_q[:, 1], unlabelled], axis=1))
        gamma = np.array([2.0, 0.5])
        h = factor("mixture", w / (gamma + w), gamma, shares, np.zeros(500, dtype=int))
        np.testing.assert_allclose(h, np.exp(log_q[:, 0]) / p, rtol=1e-9)
        assert h.max() <= 1 / (alpha + 0.5 * 0.3) * (1 + 1e-9)


def test_given_the_prompt_by_hand():
    """γ = 2, c(x, y) = 3/5 (odds 1.5, w = 3), p_golden(x)/q(x) = 4: w(y|x) = 3/4. Shares ¼ and ¾: m(x) ∝ (¼, ¾/4) = (4/7, 3/7), hence
    h = 1/(4/7 + (3/7)/(3/4)) = 7/8. Also h(x, y)/h(x) = [1/(¼ + ¾/3)]/[1/(¼ + ¾/4)] = 2/(16/7)."""
    logits, prompt, shares = np.array([[np.log(1.5)]]), np.array([[0.0, np.log(4.0)]]), np.array([0.25, 0.75])
    c = probabilities(given_prompt(logits, prompt[:, 1:]))
    assert density_ratios(c, np.array([2.0]))[0, 0] == pytest.approx(0.75)
    np.testing.assert_allclose(prompt_shares(shares, prompt), [[4 / 7, 3 / 7]])
    own = np.array([1])
    assert factor("mixture", c, np.array([2.0]), shares, own, prompt)[0] == pytest.approx(7 / 8)
    # Golden responses of the mixture answer this prompt half as often as the pool: m(x) ∝ (⅛, 3/16) = (2/5, 3/5).
    np.testing.assert_allclose(prompt_shares(shares, np.array([[np.log(2.0), np.log(4.0)]])), [[2 / 5, 3 / 5]])
    for form in ("paper", "released"):  # formulas with the mixture's own shares
        assert factor(form, c, np.array([2.0]), shares, own, prompt) == factor(form, c, np.array([2.0]), shares, own)


def test_prompt_shares_of_extreme_ratios_and_of_no_golden_share_are_finite():
    found = prompt_shares(np.array([0.0, 0.4, 0.6]), np.array([[-900.0, 800.0, 790.0], [0.0, 0.0, 0.0]]))
    assert (found[:, 0] == 0).all() and found[1] == pytest.approx([0, 0.4, 0.6]) and np.isfinite(found).all()
    assert found[0, 1] / found[0, 2] == pytest.approx(0.4 / 0.6 * np.exp(-10))


def test_the_conditional_factor_is_exact_with_exact_densities_of_topics():
    """c of a perfect classifier of (x, y) whose golden pool answers every topic alike, whatever the mixture's golden source answers."""
    testbed = Testbed(TestbedConfig(prompts=60, seed=3, prompt_shift=1.5))
    rows = [(row["prompt"], y) for row in testbed.generate() for y in row["responses"]]
    shares, gamma = np.array(list(testbed.shares.values())), np.array([0.4, 1.7, 3.0])
    # Pool uniform over topics: log r(x)/q_s(x) = −log P(s | topic)/P(s).
    prompt = -np.log([[testbed.shares_of(x)[s] / testbed.shares[s] for s in testbed.sources] for x, _ in rows])
    log_q = np.array([[testbed.log_density(s, x, y) for s in testbed.sources] for x, y in rows])
    joint = log_q[:, :1] - log_q[:, 1:] + prompt[:, 1:] - np.log(gamma)
    c = probabilities(given_prompt(joint, prompt[:, 1:]))
    h = factor("mixture", c, gamma, shares, np.zeros(len(rows), dtype=int), prompt)
    np.testing.assert_allclose(h, [testbed.true_ratio(x, y) for x, y in rows], rtol=1e-6)


LOGITS = st.lists(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2), min_size=1, max_size=20).map(np.array)
ALPHA = st.floats(0.01, 0.98)


@given(LOGITS, ALPHA, st.sampled_from(["mixture", "paper", "released"]), st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)))
def test_any_logits_give_finite_positive_bounded_factors(logits, alpha, form, gamma):
    shares, own = np.array([alpha, (1 - alpha) / 2, (1 - alpha) / 2]), np.arange(len(logits)) % 3
    h = factor(form, probabilities(logits), np.array(gamma), shares, own)
    assert np.isfinite(h).all() and (h > 0).all()
    if form != "paper":
        assert h.max() <= 1 / alpha * (1 + 1e-12)
    result = calibrate(h, CalibrationConfig(temper="auto"))
    assert np.isfinite(result.h).all() and 0 < result.ess <= 1 + 1e-12 and result.h.mean() == pytest.approx(1.0)


@given(LOGITS, ALPHA, st.integers(0, 1), st.floats(0, 5))
def test_more_golden_looking_is_never_less_weight(logits, alpha, head, step):
    shares, own = np.array([alpha, (1 - alpha) / 2, (1 - alpha) / 2]), np.full(len(logits), head + 1)
    raised = logits.copy()
    raised[:, head] += step
    for form in ("mixture", "paper", "released"):
        before, after = (factor(form, probabilities(z), np.array([0.5, 2.0]), shares, own) for z in (logits, raised))
        assert (after >= before * (1 - 1e-12)).all()


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.sampled_from(["auto", 0.0, 0.3, 1.0]))
def test_calibrate_ignores_scale_and_order(seed, scale, temper):
    rng = np.random.default_rng(seed)
    raw, config = rng.lognormal(size=50), CalibrationConfig(temper=temper)
    ours, order = calibrate(raw, config), rng.permutation(50)
    np.testing.assert_allclose(calibrate(raw * scale, config).h, ours.h, rtol=1e-4)
    np.testing.assert_allclose(calibrate(raw[order], config).h, ours.h[order], rtol=1e-4)
    assert (np.diff(ours.h[np.argsort(raw)]) >= -1e-12).all()  # the order of responses survives


@given(st.integers(0, 1000))
def test_tempering_raises_the_effective_sample_size(seed):
    h = np.random.default_rng(seed).lognormal(0, 2, size=30)
    sizes = [effective_sample_size(h**tau) for tau in np.linspace(0, 1, 11)]
    assert sizes[0] == pytest.approx(1.0) and (np.diff(sizes) <= 1e-12).all() and min(sizes) > 0


def test_forms_on_the_gaussian_check_of_the_design(gaussian):
    source, logits, true = gaussian
    c, gamma = probabilities(logits), np.ones(3)
    h = {form: factor(form, c, gamma, SHARES, source) for form in ("mixture", "paper", "released")}
    without = (density_ratios(c, gamma) / SHARES[1:]).sum(axis=1)  # the paper's formula without its 1/n term
    correlation = {k: np.corrcoef(v, true)[0, 1] for k, v in (h | {"without": without}).items()}
    assert correlation["mixture"] == pytest.approx(1.0, abs=1e-12)
    assert correlation["paper"] == pytest.approx(0.69, abs=0.03)
    assert correlation["without"] == pytest.approx(-0.05, abs=0.06)
    assert effective_sample_size(h["mixture"]) == pytest.approx(0.67, abs=0.01)
    assert effective_sample_size(h["paper"]) == pytest.approx(0.99, abs=0.01)
    assert effective_sample_size(without) < 0.02


def test_paper_and_released_by_hand():
    # n = 2, α = .25, m_1 = .75, c_1 = .8, γ_1 = 3.
    # paper: ½·[.5/(.25·(.5 + .5)) + 3·.8/(.75·(.2 + .5))] = ½·[2 + 2.4/.525] = 3.285714…
    c, shares = np.array([[0.8]]), np.array([0.25, 0.75])
    assert paper_factor(c, np.array([3.0]), shares)[0] == pytest.approx(0.5 * (2 + 2.4 / 0.525), rel=1e-15)
    # released, own source 1: 1/(.25 + .75·.2/.8) = 1/.4375; own source golden: 1/(2·.25) = 2
    assert released_factor(np.repeat(c, 2, 0), shares, np.array([1, 0])) == pytest.approx([1 / 0.4375, 2.0], rel=1e-15)


def test_extreme_logits_stay_finite():
    c = probabilities(np.array([[-1e9, 1e9], [np.inf, -np.inf]], dtype=np.float32))
    for form in ("mixture", "paper", "released"):
        h = factor(form, c, np.ones(2), np.array([0.2, 0.4, 0.4]), np.array([1, 2]))
        assert np.isfinite(h).all() and (h > 0).all()


def test_shares_from_counts_and_given():
    counts = {"human": 10, "human-b": 20, "gpt": 30, "t5": 40}
    assert mixture_shares(counts, None, ["human", "human-b"], ["gpt", "t5"]) == pytest.approx([0.3, 0.3, 0.4])
    given_shares = {"human": 0.1, "human-b": 0.1, "gpt": 0.5, "t5": 0.3}
    assert mixture_shares(counts, given_shares, ["human", "human-b"], ["gpt", "t5"]) == pytest.approx([0.2, 0.5, 0.3])
    with pytest.raises(ConfigError, match="gtp") as error:
        mixture_shares(counts, {"gtp": 1.0}, ["human"], ["gpt"])
    assert "did you mean 'gpt'" in error.value.hint
    with pytest.raises(ConfigError, match="no share for t5"):
        mixture_shares(counts, {"human": 0.5, "gpt": 0.5}, ["human"], ["gpt", "t5"])


def test_order_normalise_cap_temper():
    raw = np.array([1.0, 1.0, 2.0, 16.0])  # mean 5 → .2, .2, .4, 3.2; median .3 is the cap → .2, .2, .3, .3; √; mean 1
    config = CalibrationConfig(cap_quantile=0.51, temper=0.5)
    cap = np.quantile(raw / 5, 0.51)
    expected = np.sqrt(np.array([0.2, 0.2, cap, cap]))
    result = calibrate(raw, config)
    np.testing.assert_allclose(result.h, expected / expected.mean(), rtol=1e-14)
    assert result.capped_fraction == 0.5 and result.tau == 0.5
    untouched = calibrate(raw, CalibrationConfig(normalize=False, cap_quantile=None, temper=1.0))
    np.testing.assert_array_equal(untouched.h, raw)
    assert untouched.ess == pytest.approx(20**2 / (4 * 262))


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_auto_temper_keeps_the_floor_and_is_largest(seed, floor):
    h = np.random.default_rng(seed).lognormal(0, 2, size=100)
    tau = temper_for_floor(h, floor)
    assert effective_sample_size(h**tau) >= floor
    assert tau == 1.0 or effective_sample_size(h ** (tau + 2e-6)) < floor


def test_quantiles_are_named_by_their_level():
    assert quantiles(np.arange(101.0)) == pytest.approx({"0.05": 5, "0.25": 25, "0.5": 50, "0.75": 75, "0.95": 95})


def test_aggregate_record_factors():
    h, record = np.array([1.0, 3.0, 2.0, 4.0, 0.5]), np.array([0, 0, 1, 1, 1])
    chosen = np.array([False, True, True, False, False])
    assert aggregate(h, record, "mean").tolist() == [2.0, 6.5 / 3]
    assert aggregate(h, record, "min").tolist() == [1.0, 0.5]
    assert aggregate(h, record, "product").tolist() == [3.0, 4.0]
    assert aggregate(h, record, "chosen", chosen).tolist() == [3.0, 2.0]
