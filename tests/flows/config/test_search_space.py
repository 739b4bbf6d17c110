"""Search spaces: their forms, their refusals, and what is drawn from them."""

from __future__ import annotations

import math

import pytest

from dora_core.errors import ConfigError
from flows.config.search_space import Choices, Range, parse_dimension, parse_dimensions, sample_values

LAMBDA = "align.objective.lambda"


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("0.1..10", Range(low=0.1, high=10)),
        ("0.1..10:log", Range(low=0.1, high=10, scale="log")),
        ("1e-6..1e-4:log:3", Range(low=1e-6, high=1e-4, scale="log", count=3)),
        ("8..64", Range(low=8, high=64, whole=True)),
        ("-1..1.0", Range(low=-1, high=1)),
        ("0.05,0.1, 0.3", Choices(values=[0.05, 0.1, 0.3])),
        ("auto,1.0,{start: 3, end: 0.3}", Choices(values=["auto", 1.0, {"start": 3, "end": 0.3}])),
        ("true,false", Choices(values=[True, False])),
    ],
)
def test_forms(text: str, space: Range | Choices) -> None:
    assert parse_dimension(f"{LAMBDA}={text}").space == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("align.loss.beta", "expected KEY=SPACE"),
        ("align.loss.beta=", "expected KEY=SPACE"),
        ("data.holdout_fraction=0.1,0.2", "a search varies keys of align, calibration, classifier, trust, sft"),
        ("algin.loss.beta=1,2", "did you mean 'align'?"),
        ("align=1,2", "name a key below align"),
        (f"{LAMBDA}=3..1", "the lower end must be below the upper one"),
        (f"{LAMBDA}=0..1:log", "must lie above 0"),
        (f"{LAMBDA}=1..2:log:1", "COUNT must be 2 to"),
        (f"{LAMBDA}=1..2:cubic", "not a range"),
        (f"{LAMBDA}=1,1", "a value is there twice"),
        (f"{LAMBDA}=[1", "is not valid YAML"),
    ],
)
def test_a_mistake_names_key_reason_and_forms(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_dimensions([text])
    assert message in str(caught.value) and text.partition("=")[0].split(".")[0] in str(caught.value)
    assert "LOW..HIGH:log" in caught.value.hint


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_dimensions(["x=1", f"{LAMBDA}=2..1", f"{LAMBDA}=1,2", f"{LAMBDA}=3,4", "align.objective={name: erm}"])
    lines = caught.value.message.splitlines()
    assert len(lines) == 4 and "there twice" in lines[2] and "same section" in lines[3]


def test_a_small_space_is_tried_completely_and_in_order() -> None:
    space = parse_dimensions([f"{LAMBDA}=0.1..10:log:3", "align.optimization.batch_size=4..5"])
    assert [tuple(values.values()) for values in sample_values(space, 6, 0)] == [
        (0.1, 4),
        (0.1, 5),
        (1.0, 4),
        (1.0, 5),
        (10.0, 4),
        (10.0, 5),
    ]
    assert len(sample_values(space, 5, 0)) == 5, "a larger one is sampled"


def test_more_trials_are_a_continuation_and_another_seed_is_another_search() -> None:
    space = parse_dimensions([f"{LAMBDA}=0.1..10:log", "align.loss.beta=0.05,0.1,0.3"])
    few, many = sample_values(space, 5, 3), sample_values(space, 40, 3)
    assert many[:5] == few and len(many) == 40
    assert all(values not in many[:i] for i, values in enumerate(many)), "no trial twice"
    assert sample_values(space, 5, 4) != few


def test_draws_cover_a_range_evenly_in_its_scale() -> None:
    space = parse_dimensions([f"{LAMBDA}=0.01..100:log"])
    drawn = [values[LAMBDA] for values in sample_values(space, 64, 0)]
    # A scrambled Sobol sequence has one point in each of 64 equal intervals; rounding to three digits moves few over a border.
    filled = {int((math.log10(value) + 2) / 4 * 64) for value in drawn}
    assert len(filled) >= 56 and all(0.01 <= value <= 100 for value in drawn)
    assert all(float(f"{value:.3g}") == value for value in drawn)


def test_whole_numbers_have_equal_shares() -> None:
    space = parse_dimension("align.optimization.batch_size=1..4").space
    assert [space.draw(u) for u in (0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, 0.999)] == [1, 1, 2, 2, 3, 3, 4, 4]
    log = parse_dimension("align.optimization.batch_size=1..1024:log").space
    assert (log.draw(0.0), log.draw(0.9999)) == (1, 1024)
