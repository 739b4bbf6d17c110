"""Random worlds of preference data with a known gold reward, for measuring which way of training wins where.

A world states how its synthetic sources differ from people: in prompts, in responses, in labels. Everything in it is a vector, so a
policy trains in milliseconds and thousands of them can be compared; ``dora_core/testbed/mixture.py`` is the testbed with text.

* A prompt is ψ ~ N(δ_s, I_p); δ = 0 for people, of length ``prompt_shift`` for source s.
* A response has features y ~ N(Aψ + μ_s, I_d); μ = 0 for people, of length ``text_shift`` for source s (``golden_shift`` moves people's
  responses a part of the way to the first source's: the golden reference is then not what evaluation measures).
* The gold reward is r*(y) = ⟨u, y⟩ + ``curvature``·(q(y) − mean), with a quadratic q that no linear policy can represent: what is learned
  then depends on where the data lies, which is the case that density ratios are for.
* People label by the Bradley-Terry model on r*. The judge of source s labels by Bradley-Terry on r* + ``label_bias``·b_s(y), with
  b_s(y) = ⟨v_s, y⟩·g(y) and g rising from 1 − ``bias_locality`` to 1 with the distance from people's responses; then ``noise`` of its
  labels are reversed.

The policy is log-linear: π_θ(y | x) ∝ π_0(y | x)·exp(⟨θ, y⟩), with π_0 the distribution of people's responses. With β = 1 the margin of
DPO is ⟨θ, y_w − y_l⟩. ``gold_win_rate`` is the probability that a response of π_θ has a larger gold reward than one of π_0, with π_θ
brought to a fixed KL divergence from π_0.

Shape legend: N records, d features of a response, p of a prompt, S synthetic sources, K candidates of an evaluation prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dora_core.strict_model import StrictModel

Floats = NDArray[np.float64]

REWARD_SCALE = 2.0  # standard deviation of the gold reward's linear part among people's responses
BIAS_REACH = 2.0  # distance from people's mean, in standard deviations, at which a local bias has about half its strength


class World(StrictModel):
    """Parameters of a world. Same parameters and seed, same data."""

    records: int = Field(1500, ge=40, le=200_000, description="Labelled pairs, all sources together.")
    golden_share: float = Field(0.25, gt=0, lt=1, description="Share of pairs that people labelled.")
    sources: int = Field(1, ge=1, le=5, description="Synthetic sources; they share the rest evenly.")
    features: int = Field(12, ge=2, le=256, description="d: features of a response.")
    prompt_features: int = Field(4, ge=1, le=64, description="p: features of a prompt.")
    prompt_shift: float = Field(0.0, ge=0, le=5, description="Length of each source's shift of prompts, in standard deviations.")
    text_shift: float = Field(1.0, ge=0, le=5, description="Length of each source's shift of responses, in standard deviations.")
    golden_shift: float = Field(0.0, ge=0, le=1, description="Part of the first source's shift that the golden responses have too.")
    label_bias: float = Field(0.0, ge=0, le=5, description="Size of the judges' bias, in standard deviations of the gold reward.")
    bias_locality: float = Field(0.0, ge=0, le=1, description="0: a judge is biased everywhere; 1: only away from people's responses.")
    noise: float = Field(0.0, ge=0, le=0.5, description="Share of the synthetic labels that are reversed.")
    curvature: float = Field(0.0, ge=0, le=2, description="Size of the reward's quadratic part, in units of its linear part.")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class WorldData:
    """Labelled pairs of a world.

    Attributes:
        better_Nd, worse_Nd: features of the response that the label prefers, and of the other.
        prompt_Np: features of the prompt.
        source_N: 0 for people, 1 … S for the synthetic sources.
        agrees_N: probability that a person would give this label.
    """

    better_Nd: Floats
    worse_Nd: Floats
    prompt_Np: Floats
    source_N: NDArray[np.int64]
    agrees_N: Floats

    @property
    def difference_Nd(self) -> Floats:
        return self.better_Nd - self.worse_Nd

    @property
    def golden_N(self) -> NDArray[np.bool_]:
        golden_N: NDArray[np.bool_] = self.source_N == 0
        return golden_N


def sigmoid(z: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


class WorldModel:
    """The distributions of a world: its fixed directions, drawn from the seed, and sampling from it."""

    def __init__(self, world: World):
        self.world = world
        rng = np.random.default_rng([world.seed, 0])
        d, p, sources = world.features, world.prompt_features, world.sources

        def directions(count: int, size: int) -> Floats:
            drawn = rng.normal(size=(count, size))
            unit: Floats = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
            return unit

        self.reward_d = directions(1, d)[0] * REWARD_SCALE
        drawn = rng.normal(size=(d, d)) / np.sqrt(2 * d)
        self.quadratic_dd = (drawn + drawn.T) / 2  # of length O(1) among people's responses
        self.context_dp = rng.normal(size=(d, p)) * 0.5 / np.sqrt(p)
        no_shift_d, no_shift_p = np.zeros((1, d)), np.zeros((1, p))
        self.text_shift_Sd = np.concatenate([no_shift_d, directions(sources, d) * world.text_shift])
        self.text_shift_Sd[0] = world.golden_shift * self.text_shift_Sd[1]
        self.prompt_shift_Sp = np.concatenate([no_shift_p, directions(sources, p) * world.prompt_shift])
        self.bias_Sd = np.concatenate([no_shift_d, directions(sources, d) * REWARD_SCALE * world.label_bias])

    def gold_reward(self, y_d: Floats) -> Floats:
        """r*(y), over the last axis."""
        curved = np.einsum("...i,ij,...j->...", y_d, self.quadratic_dd, y_d) - np.trace(self.quadratic_dd)
        reward: Floats = y_d @ self.reward_d + self.world.curvature * REWARD_SCALE * curved
        return reward

    def judged_reward(self, y_Nd: Floats, prompt_Np: Floats, source_N: NDArray[np.int64]) -> Floats:
        """The reward by which a source labels; people's is the gold reward."""
        away_N = ((y_Nd - prompt_Np @ self.context_dp.T) ** 2).sum(axis=1) - self.world.features
        strength_N = 1.0 - self.world.bias_locality * sigmoid(BIAS_REACH - away_N)
        reward: Floats = self.gold_reward(y_Nd) + strength_N * (y_Nd * self.bias_Sd[source_N]).sum(axis=1)
        return reward

    def responses(self, prompt_Np: Floats, source_N: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        drawn: Floats = (
            prompt_Np @ self.context_dp.T + self.text_shift_Sd[source_N] + rng.normal(size=(len(prompt_Np), self.world.features))
        )
        return drawn

    def sample(self) -> WorldData:
        """Draw the labelled pairs."""
        world = self.world
        rng = np.random.default_rng([world.seed, 1])
        golden = min(world.records - world.sources, max(2, round(world.golden_share * world.records)))
        source_N = np.concatenate([np.zeros(golden, np.int64), 1 + np.arange(world.records - golden) % world.sources])
        prompt_Np = self.prompt_shift_Sp[source_N] + rng.normal(size=(world.records, world.prompt_features))
        one_Nd, two_Nd = (self.responses(prompt_Np, source_N, rng) for _ in range(2))
        gap_N = self.judged_reward(one_Nd, prompt_Np, source_N) - self.judged_reward(two_Nd, prompt_Np, source_N)
        first_N = rng.random(world.records) < sigmoid(gap_N)
        first_N ^= (rng.random(world.records) < world.noise) & (source_N > 0)
        better_Nd, worse_Nd = np.where(first_N[:, None], one_Nd, two_Nd), np.where(first_N[:, None], two_Nd, one_Nd)
        agrees_N = sigmoid(self.gold_reward(better_Nd) - self.gold_reward(worse_Nd))
        return WorldData(better_Nd, worse_Nd, prompt_Np, source_N, agrees_N)

    def true_ratio(self, y_Nd: Floats, prompt_Np: Floats, source: int) -> Floats:
        """log p_people(y | x) − log q_source(y | x), nats, where people's responses are those of evaluation (no ``golden_shift``)."""
        centred_Nd = y_Nd - prompt_Np @ self.context_dp.T
        shift_d = self.text_shift_Sd[source]
        log_ratio: Floats = 0.5 * shift_d @ shift_d - centred_Nd @ shift_d
        return log_ratio

    def gold_win_rate(self, theta_d: Floats, kl: float = 1.0, prompts: int = 500, candidates: int = 64) -> Floats:
        """Win rates (prompts,) against π_0 of π_θ at ``kl`` nats from π_0, by the gold reward, exact over ``candidates`` responses of π_0.

        θ is scaled to that KL divergence (mean over prompts): otherwise the more confident policy wins, whatever it has learned, and
        confidence is what β is for. ½ at θ = 0.
        """
        rng = np.random.default_rng([self.world.seed, 2])
        prompt_p = rng.normal(size=(prompts, self.world.prompt_features))
        y_Kd = (prompt_p @ self.context_dp.T)[:, None, :] + rng.normal(size=(prompts, candidates, self.world.features))
        policy = tilted_to(y_Kd @ theta_d, kl)
        order = self.gold_reward(y_Kd).argsort(axis=1).argsort(axis=1)  # rank r of K: r candidates lose to it, and it ties with itself
        rates: Floats = (policy * (order + 0.5)).sum(axis=1) / candidates
        return rates


def tilted_to(scores_PK: Floats, kl: float) -> Floats:
    """Softmax over each prompt's candidates of t·scores, with t ≥ 0 such that the mean KL from uniform is ``kl`` nats (to 1e-6)."""

    def tilted(scale: float) -> tuple[Floats, float]:
        scaled = scale * scores_PK
        log_p = scaled - scaled.max(axis=1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        return p, float((p * log_p).sum(axis=1).mean() + np.log(scores_PK.shape[1]))

    spread = float(scores_PK.std(axis=1).mean())
    if spread == 0:
        return np.full_like(scores_PK, 1 / scores_PK.shape[1])
    low, high = 0.0, 1.0 / spread
    while tilted(high)[1] < kl and high * spread < 1e6:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(middle)[1] < kl else (low, middle)
    return tilted(high)[0]


def random_world(seed: int) -> World:
    """Draw the parameters of a world: golden share .02–.5 and size in log, each kind of shift absent in some worlds."""
    rng = np.random.default_rng([seed, 3])

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def sometimes(low: float, high: float) -> float:
        return float(rng.uniform(low, high)) if rng.random() < 0.7 else 0.0

    return World(
        records=round(log_uniform(400, 4000)),
        golden_share=log_uniform(0.02, 0.5),
        sources=int(rng.integers(1, 6)),
        features=round(log_uniform(8, 64)),
        prompt_features=int(rng.integers(2, 9)),
        prompt_shift=sometimes(0.2, 2.0),
        text_shift=sometimes(0.3, 3.0),
        golden_shift=float(rng.uniform(0.0, 0.5)) if rng.random() < 0.25 else 0.0,
        label_bias=sometimes(0.2, 2.0),
        bias_locality=sometimes(0.0, 1.0),
        noise=sometimes(0.05, 0.4),
        curvature=sometimes(0.1, 0.6),
    )
