"""Independent reference of every loss: float64, plain Python, one record and one pair at a time.

Written from the papers' formulas with sorting and loops; shares nothing with ``dora_core.losses`` but the parameter names.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dora_core.losses import parse_loss
from tests.dora_core.batches import NAN, batch_of


@dataclass
class Response:
    logp: float
    reference: float
    length: float
    reward: float

    @property
    def lr(self) -> float:
        return self.logp - self.reference

    @property
    def average(self) -> float:
        return self.logp / self.length


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(average: float) -> float:
    chance = math.exp(average)
    return math.log(chance / (1 - chance))


def pair_loss(p: dict[str, Any], w: Response, loser: Response) -> float:
    """ℓ of one pair, by name; ``p`` are the loss's parameters."""
    beta, m = p["beta"], p["beta"] * (w.lr - loser.lr)
    match p["name"]:
        case "dpo" | "rpo":
            return -math.log(sigmoid(m))
        case "r_dpo":
            return -math.log(sigmoid(m + p["length_penalty"] * (w.length - loser.length)))
        case "ln_dpo":
            return -math.log(sigmoid(beta * (w.lr / w.length - loser.lr / loser.length)))
        case "simpo":
            return -math.log(sigmoid(beta * (w.average - loser.average) - p["gamma_beta_ratio"] * beta))
        case "cdpo":
            return -(1 - p["epsilon"]) * math.log(sigmoid(m)) - p["epsilon"] * math.log(sigmoid(-m))
        case "robust_dpo":
            e = p["epsilon"]
            return (-(1 - e) * math.log(sigmoid(m)) + e * math.log(sigmoid(-m))) / (1 - 2 * e)
        case "ipo":
            return (w.lr - loser.lr - 1 / (2 * beta)) ** 2
        case "exo":
            s, e = sigmoid(m), p["epsilon"]
            return s * (math.log(s) - math.log(1 - e)) + (1 - s) * (math.log(1 - s) - math.log(e))
        case "kto":
            desirable = p["desirable_weight"] * (1 - sigmoid(beta * (w.lr - p["fixed_z0"])))
            undesirable = p["undesirable_weight"] * (1 - sigmoid(beta * (p["fixed_z0"] - loser.lr)))
            return (desirable + undesirable) / 2
        case "bco":
            d = p["fixed_delta"]
            return (-math.log(sigmoid(beta * w.lr - d)) - math.log(sigmoid(-(beta * loser.lr - d)))) / 2
        case "ropo":
            alpha = p["alpha"]
            return 4 * alpha / (1 + alpha) ** 2 * -math.log(sigmoid(m)) + 4 * alpha**2 / (1 + alpha) ** 2 * sigmoid(-m)
        case "hinge":
            return max(0.0, 1 - m)
        case "sppo":
            return (w.lr - 0.5 / beta) ** 2 + (loser.lr + 0.5 / beta) ** 2
        case "chi_po":
            bound, phi = 2 * p["largest_reward"], [math.exp(r.lr) + r.lr for r in (w, loser)]
            return -math.log(sigmoid(min(bound, max(-bound, beta * (phi[0] - phi[1])))))
        case "nca":
            return -math.log(sigmoid(beta * w.lr)) - 0.5 * math.log(sigmoid(-beta * w.lr)) - 0.5 * math.log(sigmoid(-beta * loser.lr))
        case "apo_zero":
            return 1 - sigmoid(beta * w.lr) + sigmoid(beta * loser.lr)
        case "apo_down":
            return sigmoid(beta * w.lr) + 1 - sigmoid(m)
        case "cpo":
            return -math.log(sigmoid(beta * (w.logp - loser.logp)))
        case "orpo":
            return -beta * math.log(sigmoid(log_odds(w.average) - log_odds(loser.average)))
        case "asft":
            return -beta * (math.log(sigmoid(log_odds(w.average))) + math.log(sigmoid(-log_odds(loser.average))))
    raise AssertionError(p["name"])


def record_loss(p: dict[str, Any], responses: list[Response]) -> float:
    """ℓ of one record of distinct or tied rewards; unmeasured responses are dropped first."""
    ranked = sorted((r for r in responses if not math.isnan(r.reward)), key=lambda r: -r.reward)
    best = ranked[0]
    match p["name"]:
        case "dpo_pl":
            total = 0.0
            for r in ranked:
                rivals = [r, *(other for other in ranked if other.reward < r.reward)]
                total -= math.log(math.exp(p["beta"] * r.lr) / sum(math.exp(p["beta"] * x.lr) for x in rivals))
            return total
        case "lire":
            policy = [math.exp(r.logp / p["temperature"]) for r in ranked]
            target = [math.exp(r.reward) for r in ranked]
            return -sum(a * b for a, b in zip(policy, target, strict=True)) / (sum(policy) * sum(target))
        case "sft":
            return -best.average
        case "d2o":
            worst = ranked[-1]
            better = [r.lr for r in ranked if r.reward > worst.reward]
            return -math.log(sigmoid(p["beta"] * sum(better) / len(better) - p["alpha"] * worst.lr))
        case "rrhf":
            inversions = sum(max(0.0, i.average - j.average) for i in ranked for j in ranked if i.reward < j.reward)
            return inversions - p["sft_weight"] * best.average
        case "pro":
            total = -p["sft_weight"] * (len(ranked) - 1) ** 2 * best.logp
            for r in ranked:
                beaten = [other for other in ranked if other.reward < r.reward]
                if beaten:
                    own = math.exp(r.average * max(r.reward - x.reward for x in beaten))
                    total -= math.log(own / (own + sum(math.exp(x.average * (r.reward - x.reward)) for x in beaten)))
            return total
    pairs = [(w, x) for w, x in itertools.permutations(ranked, 2) if w.reward > x.reward]
    if p["pairs"] == "best_worst":
        pairs = [(best, min(ranked, key=lambda r: r.reward))]
    mean = sum(pair_loss(p, *pair) for pair in pairs) / len(pairs)
    imitation = {"rpo": p.get("sft_weight"), "cpo": p.get("sft_weight"), "orpo": 1.0, "asft": 1.0}.get(p["name"], 0.0)
    return mean - imitation * best.average


def ragged_records(seed: int) -> list[list[Response]]:
    """Six records of 2 to 6 responses; half of them with ties in the middle of the list, a third with an unmeasured response."""
    chance = random.Random(seed)
    records = []
    for number in range(6):
        # Best and worst are unique: with a tie there, best_worst takes the first, which is not the reference's business.
        size = 2 + number % 4
        rewards = [4.0, -4.0, *chance.sample([-2.0, -1.0, 0.0, 1.5, 2.5], size - 2)]
        if number % 2 and size > 3:
            rewards[3] = rewards[2]
        responses = [Response(chance.uniform(-6, 0), chance.uniform(-6, 0), float(chance.randint(1, 9)), reward) for reward in rewards]
        if number % 3 == 0:
            responses.append(Response(-1.0, -2.0, 3.0, NAN))
        chance.shuffle(responses)
        records.append(responses)
    return records


def compare_with_reference(parameters: dict[str, Any], seed: int) -> None:
    """Check value and gradient of a loss on :func:`ragged_records` against the reference and its finite differences."""
    loss, records = parse_loss(parameters), ragged_records(seed)
    known = loss.model_dump()
    columns = ([[getattr(r, field) for r in record] for record in records] for field in ("logp", "reward", "reference", "length"))
    batch = batch_of(*columns)
    leaf = batch.policy_logps_BN.requires_grad_()
    losses = loss(batch)
    losses.sum().backward()
    for row, record in enumerate(records):
        assert losses[row].item() == pytest.approx(record_loss(known, record), rel=1e-12, abs=1e-12)
        for column, response in enumerate(record):
            step, centre = 1e-6, response.logp
            response.logp = centre + step
            above = record_loss(known, record)
            response.logp = centre - step
            below = record_loss(known, record)
            response.logp = centre
            assert leaf.grad[row, column].item() == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)


def compare_precisions(parameters: dict[str, Any]) -> None:
    """Check that float32 agrees with float64."""
    records = ragged_records(7)
    columns = [[[getattr(r, field) for r in record] for record in records] for field in ("logp", "reward", "reference", "length")]
    loss = parse_loss(parameters)
    double, single = loss(batch_of(*columns)), loss(batch_of(*columns, dtype=torch.float32))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
