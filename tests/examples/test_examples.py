"""Every example runs, prints a result, and the result is right."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dora_core.losses import LOSSES
from dora_core.objectives import OBJECTIVES

HERE = Path(__file__).parent
EXAMPLES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__init__" and not path.stem.startswith("test_"))


@pytest.fixture(autouse=True)
def restored_registries() -> Iterator[None]:
    """An example registers its own loss and objective; other tests must not see them."""
    losses, objectives = dict(LOSSES), dict(OBJECTIVES)
    yield
    for registry, before in ((LOSSES, losses), (OBJECTIVES, objectives)):
        registry.clear()
        registry.update(before)
    for name in EXAMPLES:
        sys.modules.pop(f"tests.examples.{name}", None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[str], Any]:
    def run(name: str) -> Any:
        result = importlib.import_module(f"tests.examples.{name}").main()
        assert capsys.readouterr().out.strip(), "an example prints its result"
        return result

    return run


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    assert {f"test_{name}" for name in EXAMPLES} <= set(globals())
    readme = (HERE.parents[1] / "dora_core" / "README.md").read_text(encoding="utf-8")
    assert [name for name in EXAMPLES if f"(../tests/examples/{name}.py)" not in readme] == []


def test_own_loss_and_objective(run) -> None:
    """Margins .2·(2 + 1) and .2·(0 − 1): ℓ = (.4², 1.2²); λ log mean exp(max(h, ½)·ℓ) = log((e^.08 + e^2.16)/2)."""
    losses, value = run("own_loss_and_objective")
    assert losses == pytest.approx([0.16, 1.44])
    assert value == pytest.approx(math.log((math.exp(0.08) + math.exp(2.16)) / 2), rel=1e-6)


def test_exact_global_batch(run) -> None:
    exact, naive = run("exact_global_batch")
    assert exact < 1e-12 < 0.01 < naive


def test_calibration_factor(run) -> None:
    h, records, ess = run("calibration_factor")
    assert sum(h) / 5 == pytest.approx(1.0)
    assert max(h) == h[0], "the response most likely to be golden"
    assert records == pytest.approx([sum(h[:3]) / 3, sum(h[3:]) / 2])
    assert 0.5 <= ess <= 1


def test_known_mixture(run) -> None:
    error, mean, golden = run("known_mixture")
    assert error < 1e-9
    assert mean == pytest.approx(1.0, abs=0.1)
    assert golden > 1.2 * mean


def test_held_out_metrics(run) -> None:
    accuracy, lift, wins, p = run("held_out_metrics")
    assert accuracy.low < accuracy.value < accuracy.high and accuracy.n == 200
    assert 0.8 < accuracy.value < 0.95
    assert lift.low > 0, "the policy with less noise is better"
    assert wins.low > 0.5 and p < 0.01


def test_reading_records(run) -> None:
    records, problems = run("reading_records")
    assert [(r.responses, r.rewards, r.sources) for r in records] == [
        (["Rayleigh scattering.", "Magic."], [1.0, 0.0], ["human", "some-lm"]),
    ]
    assert {problem.field for problem in problems} == {"rejected"}
    assert len(problems) == 2


def test_response_logprobs(run) -> None:
    packed, plain = run("response_logprobs")
    assert packed == pytest.approx(plain, abs=1e-4)
    assert max(packed) < 0


def test_sampling(run) -> None:
    together, alone = run("sampling")
    assert together == alone
    assert [len(of_prompt) for of_prompt in together] == [2, 2]


def test_source_classifier(run) -> None:
    learned, best = run("source_classifier")
    assert 0.7 < learned <= best + 0.02


def test_aligning_a_policy(run) -> None:
    fall, accuracy = run("aligning_a_policy")
    assert fall > 0.05 and accuracy == 1.0


def test_reward_model(run) -> None:
    better, worse = run("reward_model")
    assert better > worse + 1


def test_choosing_lambda(run) -> None:
    small, large, kept = run("choosing_lambda")
    assert large == pytest.approx(10 * small, rel=5e-3)
    assert kept == pytest.approx(0.9, abs=5e-3)


def test_judging_pairs(run) -> None:
    """The two long ones tie, as each wins in first position only; both beat the short one."""
    assert run("judging_pairs") == [0.75, 0.75, 0.0]


def test_comparing_samples(run) -> None:
    healthy, collapsed, same, longer = run("comparing_samples")
    assert (collapsed.self_bleu, collapsed.identical, collapsed.one_answer) == (1.0, 1.0, 1.0)
    assert healthy.self_bleu < 0.5
    assert same < 0 < longer


def test_comparing_seeds(run) -> None:
    verdict, lift = run("comparing_seeds")
    assert verdict == "overlapping"
    assert lift.low > 0 and lift.t_low > 0 and lift.value == pytest.approx(0.03, abs=0.005)
