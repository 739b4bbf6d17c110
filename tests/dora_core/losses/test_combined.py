"""MPO: a weighted sum, its settings, and the parts it refuses."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import for_all, ragged, same, value

PARTS = [
    {"loss": {"name": "dpo", "beta": 0.5, "pairs": "all"}, "weight": 0.5},
    {"loss": {"name": "dpo_pl", "beta": 0.2}, "weight": 2.0},
    {"loss": "sft"},
]


def test_mpo() -> None:
    # sft: 4 nats over 4 tokens = 1, weight 2; hinge: 1 − .1·(−4 + 6) = .8, weight .5: 2.4
    parts = [{"loss": "sft", "weight": 2.0}, {"loss": "hinge", "weight": 0.5}]
    assert value({"name": "mpo", "parts": parts}, [[-4.0, -6.0]], [[1.0, 0.0]]) == pytest.approx(2.4)


@for_all(batch=ragged())
def test_it_is_the_sum_of_its_parts(batch: PreferenceBatch) -> None:
    expected = 0.5 * parse_loss(PARTS[0]["loss"])(batch) + 2 * parse_loss(PARTS[1]["loss"])(batch) + parse_loss("sft")(batch)
    same(parse_loss({"name": "mpo", "parts": PARTS})(batch), expected)


def test_it_reads_what_its_parts_read() -> None:
    assert parse_loss("mpo").reads_label_probability and parse_loss("mpo").reads_pairs_only
    mixed = parse_loss({"name": "mpo", "parts": PARTS})
    assert mixed.reads_label_probability and not mixed.reads_pairs_only
    assert not parse_loss({"name": "mpo", "parts": [*PARTS, {"loss": {"name": "lire"}, "weight": 1.0}]}).reads_label_probability
    assert [loss.name for loss in mixed.nested] == ["dpo", "dpo_pl", "sft"]


def test_it_survives_a_pickle_and_a_file() -> None:
    loss = parse_loss({"name": "mpo", "parts": PARTS})
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert parse_loss(loss.model_dump(mode="json")) == loss
    assert loss.model_dump()["parts"][0]["loss"] == {"name": "dpo", "beta": 0.5, "pairs": "all"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least 1 item"),
        ([{"loss": "dppo"}], "unknown loss 'dppo'; did you mean 'dpo'"),
        ([{"loss": {"name": "dpo", "beta": 0.0}}], "greater than 0"),
        ([{"loss": "dpo", "weight": 0.0}], "greater than 0"),
        ([{"loss": "dpo"}, {"loss": "lcpo"}, {"loss": "aot"}], "lcpo, aot cannot be a part of mpo"),
    ],
)
def test_parts_are_checked(parts: list[dict], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_loss({"name": "mpo", "parts": parts})
