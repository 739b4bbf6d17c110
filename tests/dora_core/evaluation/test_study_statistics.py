import math

import numpy as np
import pytest

from dora_core.evaluation.study_statistics import (
    FACTOR_MEASURES,
    Cell,
    Estimate,
    factor_columns,
    mean_over,
    ratio,
    separated,
    student_t,
    two_level,
)

BOOT = {"resamples": 1000, "confidence": 0.95, "seed": 0}


# ------------------------------------------------------------------------------------------------------------ intervals


def test_student_t_is_that_of_the_tables() -> None:
    expected = {(0.95, 1): 12.7062, (0.95, 2): 4.3027, (0.95, 4): 2.7764, (0.95, 9): 2.2622, (0.99, 5): 4.0321, (0.9, 30): 1.6973}
    assert {key: round(student_t(*key), 4) for key in expected} == expected


def test_constant_data_have_intervals_of_width_zero() -> None:
    assert mean_over([np.full(7, 0.5), np.full(3, 0.5)], **BOOT) == Estimate(
        value=0.5, low=0.5, high=0.5, t_low=0.5, t_high=0.5, seeds=2, prompts=10
    )


def test_every_seed_weighs_the_same_however_many_prompts_it_has() -> None:
    assert mean_over([np.zeros(99), np.ones(1)], **BOOT).value == 0.5


def test_one_seed_has_a_bootstrap_over_prompts_and_no_t_interval() -> None:
    values = np.arange(100) / 100
    got = mean_over([values], **BOOT)
    assert math.isnan(got.t_low) and math.isnan(got.t_high)
    half = 1.96 * values.std() / 10  # the normal interval of a mean of 100
    assert (got.low, got.high) == pytest.approx((0.495 - half, 0.495 + half), abs=0.01)
    assert got.model_dump(mode="json")["t_low"] is None


def test_one_number_has_no_interval() -> None:
    assert mean_over([np.array([2.5])], **BOOT).model_dump(mode="json") == {
        "value": 2.5, "low": None, "high": None, "t_low": None, "t_high": None, "seeds": 1, "prompts": 1,
    }  # fmt: skip


def test_an_undefined_bound_is_null_in_json_and_nan_when_read_back() -> None:
    written = mean_over([np.array([2.5])], **BOOT).model_dump(mode="json")
    assert math.isnan(Estimate.model_validate(written).low) and Estimate.model_validate(written).model_dump(mode="json") == written


def test_the_t_interval_is_that_of_the_seed_means() -> None:
    got = mean_over([np.full(4, m) for m in (1.0, 2.0, 3.0)], **BOOT)
    half = 4.302653 * 1.0 / math.sqrt(3)  # the three means have standard deviation 1
    assert (got.t_low, got.t_high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_variance_of_the_bootstrap_adds_both_levels() -> None:
    """Closed form: Var* = [between · 1 + within/K]/S with the variances divided by S and K, not S − 1 and K − 1."""
    rng = np.random.default_rng(1)
    seeds, prompts = 6, 25
    values = [rng.normal(m, 2.0, prompts) for m in rng.normal(0, 1, seeds)]
    between = np.var([v.mean() for v in values])
    within = np.mean([v.var() for v in values])
    got = mean_over(values, resamples=20_000, confidence=0.6827, seed=0)
    assert (got.high - got.low) / 2 == pytest.approx(math.sqrt((between + within / prompts) / seeds), rel=0.03)


@pytest.mark.parametrize(
    ("between", "within", "percentile", "student"), [(0.1, 0.5, (0.90, 0.97), (0.92, 0.98)), (1.0, 0.1, (0.78, 0.90), (0.92, 0.98))]
)
def test_coverage_is_what_the_module_says(
    between: float, within: float, percentile: tuple[float, float], student: tuple[float, float]
) -> None:
    """Five seeds: near nominal where prompts vary too, too narrow where only seeds do; t is right in both."""
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    trials = 400
    for trial in range(trials):
        got = mean_over([rng.normal(rng.normal(0, between), within, 40) for _ in range(5)], resamples=300, confidence=0.95, seed=trial)
        hits += [got.low <= 0 <= got.high, got.t_low <= 0 <= got.t_high]
    assert percentile[0] <= hits[0] / trials <= percentile[1]
    assert student[0] <= hits[1] / trials <= student[1]


def test_a_paired_difference_cancels_what_is_shared() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, 50) for _ in range(5)]
    single = mean_over([n + 0.1 for n in noise], **BOOT)
    paired = mean_over([(n + 0.1) - n for n in noise], **BOOT)
    assert single.low < 0 < single.high
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))


def test_equal_shapes_are_resampled_alike() -> None:
    """The negated data have the mirrored interval, exactly: their resamples are the same prompts."""
    values = [np.random.default_rng(i).gamma(1.0, size=20) for i in range(3)]
    there, back = (
        mean_over(values, resamples=200, confidence=0.9, seed=3),
        mean_over([-v for v in values], resamples=200, confidence=0.9, seed=3),
    )
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there.low != mean_over(values, resamples=200, confidence=0.9, seed=4).low


def test_separated() -> None:
    def interval(low: float, high: float) -> Estimate:
        return Estimate(value=(low + high) / 2, low=low, high=high, t_low=low, t_high=high, seeds=5, prompts=100)

    assert separated(interval(0.6, 0.7), interval(0.4, 0.5)) == "above"
    assert separated(interval(0.4, 0.5), interval(0.6, 0.7)) == "below"
    assert separated(interval(0.4, 0.61), interval(0.6, 0.7)) == "overlapping"


# -------------------------------------------------------------------------------------- calibration against the truth


def measures(h: np.ndarray, truth: np.ndarray, record: np.ndarray) -> dict[str, float]:
    columns = factor_columns(h, truth, record)
    return {name: float(m.statistic(columns[m.columns].sum(axis=0))) for name, m in FACTOR_MEASURES.items()}


def test_factor_measures_against_numpy() -> None:
    rng = np.random.default_rng(0)
    truth, record = rng.gamma(2.0, size=200), np.arange(200) // 4
    h = truth * rng.uniform(0.5, 2.0, 200)
    got = measures(h, truth, record)
    ranks = [np.argsort(np.argsort(v)) for v in (h, truth)]
    assert got["pearson"] == pytest.approx(np.corrcoef(h, truth)[0, 1])
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert got["error"] == pytest.approx(np.sqrt(np.mean((h / h.mean() - truth / truth.mean()) ** 2)))
    assert got["ess"] == pytest.approx(h.sum() ** 2 / (200 * (h**2).sum()))
    p, q = truth / truth.sum(), h / h.sum()
    assert got["kl"] == pytest.approx((p * np.log(p / q)).sum())
    scaled = measures(7.0 * h, truth, record)
    assert scaled == pytest.approx(got), "no measure depends on the scale of h"


def gaussian_mixture(n: int, seed: int) -> np.ndarray:
    """The true p_golden/P of n draws of P = .3 N(0, 1) + .7 N(1, 1)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(np.where(rng.random(n) < 0.3, 0.0, 1.0))
    return 1.0 / (0.3 + 0.7 * np.exp(x - 0.5))


def test_the_exact_factor_has_no_divergence_and_a_constant_one_that_of_the_mixture() -> None:
    truth = gaussian_mixture(40_000, 0)
    record = np.arange(40_000) // 4
    columns = factor_columns(5.0 * truth, truth, record)
    kl = two_level([columns["divergence"]], FACTOR_MEASURES["kl"].statistic, **BOOT)
    assert (kl.low, kl.value, kl.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    flat = measures(np.ones(40_000), truth, record)
    assert math.isnan(flat["pearson"]) and math.isnan(flat["spearman"])
    assert flat["ess"] == pytest.approx(1.0)
    # KL(golden ‖ P) by quadrature of φ(x)·log ratio(x)
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    assert flat["kl"] == pytest.approx(np.sum(density * -np.log(0.3 + 0.7 * np.exp(grid - 0.5))) * (grid[1] - grid[0]), abs=0.01)


def test_a_constant_truth_has_no_correlation_whatever_its_last_digits() -> None:
    rng = np.random.default_rng(0)
    truth = 1.0 + 1e-16 * rng.integers(-1, 3, 100)
    got = measures(rng.gamma(2.0, size=100), truth, np.arange(100))
    assert math.isnan(got["pearson"]) and math.isnan(got["spearman"])


def test_intervals_of_a_correlation_resample_records() -> None:
    """Responses of one record that are copies of each other carry no more information than one of them."""
    truth = gaussian_mixture(150, 1)
    h = truth * np.random.default_rng(2).uniform(0.3, 3.0, 150)
    once = factor_columns(h, truth, np.arange(150))["values"]
    copied = factor_columns(*(np.repeat(v, 4) for v in (h, truth, np.arange(150))))["values"]
    statistic = FACTOR_MEASURES["pearson"].statistic
    a, b = two_level([once], statistic, **BOOT), two_level([copied], statistic, **BOOT)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_ratio() -> None:
    assert ratio(np.array([[3.0, 4.0], [1.0, 2.0]])).tolist() == [0.75, 0.5]


# ------------------------------------------------------------------------------------------------------------- cells


def test_keys_say_what_differs_and_twins_share_loss_and_data() -> None:
    erm = Cell(loss="dpo", objective="erm", label_noise=0.2)
    golden = erm.model_copy(update={"baseline": "golden_only"})
    robust = erm.model_copy(update={"objective": "dora"})
    assert erm.is_twin_of(golden) and erm.is_twin_of(robust) and not golden.is_twin_of(robust) and golden.method() == "dpo · golden_only"
    assert golden.is_golden_of(robust) and golden.is_golden_of(erm) and not robust.is_golden_of(golden)
    assert not golden.is_golden_of(Cell(loss="dpo", objective="dora")), "other label noise is other data"
    assert not erm.model_copy(update={"baseline": "golden_only_epochs"}).is_golden_of(robust)
    dora = Cell(loss="dpo", objective="dora", lam="auto", factors="mixture", temper="auto", label_noise=0.2)
    assert dora.key() == "dpo · dora λ=auto · mixture τ=auto · noise 0.2 · golden shift 0"
    assert erm.key() == "dpo · erm · noise 0.2 · golden shift 0"
    assert erm.is_twin_of(dora) and not dora.is_twin_of(erm)
    for other in ({"loss": "exo"}, {"label_noise": 0.4}, {"golden_shift": 1.0}):
        assert not erm.is_twin_of(dora.model_copy(update=other))


def test_a_round_follows_the_one_before_and_every_strategy_the_alignment() -> None:
    first = Cell(loss="dpo", objective="dora", lam="auto")
    second = first.model_copy(update={"round": 1})
    raft = [first.model_copy(update={"round": k, "strategy": "raft"}) for k in (1, 2)]
    assert second.follows(first) and not first.follows(second) and not first.follows(first)
    assert raft[0].follows(first) and raft[1].follows(raft[0]) and not raft[1].follows(second)
    assert not second.follows(Cell(loss="dpo", objective="erm")) and len({c.key() for c in (first, second, *raft)}) == 4
