"""Five nights of new data with drift: retraining from the base on everything against continuing from the champion.

Every world is drawn from its number (``dora_core/testbed/worlds.py``). Each night brings new records; from night to night the topics of all
prompts move (by ``DRIFT`` standard deviations in all, so that with a curved reward the best policy moves too), and another source makes
most of the synthetic ones. A night trains by minibatches of DPO (β = 1) on records weighted by cross-fitted factors h of its training
records, with a number of steps in proportion to them:

* ``base``: from θ = 0, which is also the reference, on the records of all nights;
* ``champion r``: from last night's policy, which is also the reference, on the new records and replayed ones of a share r of the whole
  (``tasks/stages/replay.py``);
* ``first night``: the first policy, kept.

A policy is judged on the prompts of its night: gold win rate against the start as the policy is, and at one nat of KL divergence from the
base (direction without confidence); KL from the base, ½‖θ‖². No gate: every night's policy becomes champion.
Cost is in steps and in seconds of one core, factors included.

    python -m tests.benchmarks.bench_nights [--first 300] [--worlds 20] [--records 600] [--state FILE] [--save FILE]
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from dora_core.config.method import DEFAULT_REPLAY
from dora_core.evaluation.metrics import sigmoid
from dora_core.selection.proxy import Floats
from dora_core.testbed.worlds import WorldData, WorldModel, random_world, tilted_to
from tests.benchmarks.bench_worlds import CLASSIFIER_FOLDS, factors
from tests.benchmarks.harness import Row, argument_parser, report

NIGHTS, DRIFT = 5, 2.0
EPOCHS, BATCH, RATE = 2, 32, 0.05
ARMS = {"base": None, "champion 0": 0.0, f"champion {DEFAULT_REPLAY:g}": DEFAULT_REPLAY, "champion 0.5": 0.5}
KEPT = "first night"
PROMPTS, CANDIDATES = 300, 64


class Nights:
    """A world whose prompts and mixture of sources move from night to night."""

    def __init__(self, number: int, records: int):
        world = random_world(number)
        sources = max(2, world.sources)
        self.model = WorldModel(world.evolve(records=records, sources=sources, seed=number, curvature=max(0.2, world.curvature)))
        rng = np.random.default_rng([number, 5])
        way = rng.normal(size=self.model.world.prompt_features)
        self._way_p = DRIFT * way / np.linalg.norm(way)
        self._first = rng.permutation(sources) + 1

    def topics(self, night: int) -> Floats:
        moved: Floats = self._way_p * night / (NIGHTS - 1)
        return moved

    def data(self, night: int) -> WorldData:
        """The night's new records: the golden share is that of the world, and one source, another each night, makes 70 % of the rest."""
        model, world = self.model, self.model.world
        rng = np.random.default_rng([world.seed, 6, night])
        golden = max(10, round(world.golden_share * world.records))
        main = self._first[night % world.sources]
        shares = np.where(np.arange(1, world.sources + 1) == main, 0.7, 0.3 / (world.sources - 1))
        source_N = np.concatenate([np.zeros(golden, np.int64), 1 + rng.choice(world.sources, world.records - golden, p=shares)])
        prompt_Np = self.topics(night) + model.prompt_shift_Sp[source_N] + rng.normal(size=(world.records, world.prompt_features))
        one_Nd, two_Nd = (model.responses(prompt_Np, source_N, rng) for _ in range(2))
        gap_N = model.judged_reward(one_Nd, prompt_Np, source_N) - model.judged_reward(two_Nd, prompt_Np, source_N)
        first_N = rng.random(world.records) < sigmoid(gap_N)
        first_N ^= (rng.random(world.records) < world.noise) & (source_N > 0)
        better_Nd, worse_Nd = np.where(first_N[:, None], one_Nd, two_Nd), np.where(first_N[:, None], two_Nd, one_Nd)
        return WorldData(better_Nd, worse_Nd, prompt_Np, source_N, sigmoid(model.gold_reward(better_Nd) - model.gold_reward(worse_Nd)))

    def win_rates(self, theta_d: Floats, night: int) -> tuple[float, float]:
        """Gold win rate on the night's prompts: of the policy as it is, and at one nat from the base."""
        model, rng = self.model, np.random.default_rng([self.model.world.seed, 7, night])
        prompt_p = self.topics(night) + rng.normal(size=(PROMPTS, model.world.prompt_features))
        y_Kd = (prompt_p @ model.context_dp.T)[:, None, :] + rng.normal(size=(PROMPTS, CANDIDATES, model.world.features))
        score = y_Kd @ theta_d
        as_is = np.exp(score - score.max(axis=1, keepdims=True))
        order = model.gold_reward(y_Kd).argsort(axis=1).argsort(axis=1)
        policies = as_is / as_is.sum(axis=1, keepdims=True), tilted_to(score, 1.0)
        as_it_is, at_one_nat = (float(((p * (order + 0.5)).sum(axis=1) / CANDIDATES).mean()) for p in policies)
        return as_it_is, at_one_nat


def taken(data: WorldData, rows: NDArray[np.int64]) -> WorldData:
    return WorldData(*(getattr(data, name)[rows] for name in ("better_Nd", "worse_Nd", "prompt_Np", "source_N", "agrees_N")))


def joined(parts: list[WorldData]) -> WorldData:
    names = ("better_Nd", "worse_Nd", "prompt_Np", "source_N", "agrees_N")
    return WorldData(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass
class Trained:
    theta_d: Floats
    steps: int
    seconds: float


def train(data: WorldData, reference_d: Floats, rng: np.random.Generator) -> Trained:
    """DPO with β = 1 from the reference, by Adam with a rate that falls to 0; every record weighted by its h."""
    started = time.process_time()
    n = len(data.source_N)
    h = factors(data, rng.permutation(np.arange(n) % CLASSIFIER_FOLDS))
    theta, difference = reference_d.copy(), data.difference_Nd
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    order = np.concatenate([rng.permutation(n) for _ in range(EPOCHS)])
    steps = len(order) // BATCH
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        margin = difference[rows] @ (theta - reference_d)
        gradient = ((sigmoid(margin) - 1) * h[rows]) @ difference[rows] / BATCH
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        theta -= RATE * (1 - step / steps) * corrected
    return Trained(theta, steps, time.process_time() - started)


def measure(number: int, records: int) -> dict[str, Any]:
    """Of every arm and night: win rates, KL from the base, steps, seconds."""
    nights = Nights(number, records)
    new = [nights.data(night) for night in range(NIGHTS)]
    out: dict[str, Any] = {}
    for arm, replay in ARMS.items():
        theta = np.zeros(nights.model.world.features)
        out[arm] = []
        for night in range(NIGHTS):
            rng = np.random.default_rng([number, night, 8])
            if replay is None:
                data, reference = joined(new[: night + 1]), np.zeros_like(theta)
            else:
                data, reference = new[night], theta
                earlier = joined(new[:night]) if night else None
                again = round(replay / (1 - replay) * records)
                if earlier is not None and again:
                    data = joined([data, taken(earlier, np.sort(rng.permutation(len(earlier.source_N))[:again]))])
            found = train(data, reference, rng)
            theta = found.theta_d
            out[arm].append(_judged(nights, theta, night) | {"steps": found.steps, "seconds": found.seconds})
            if arm == "base" and night == 0:
                out[KEPT] = [_judged(nights, theta, later) | {"steps": 0, "seconds": 0.0} for later in range(NIGHTS)]
    return out


def _judged(nights: Nights, theta_d: Floats, night: int) -> dict[str, float]:
    win, at_one = nights.win_rates(theta_d, night)
    return {"win": win, "win at 1 nat": at_one, "kl": float(theta_d @ theta_d / 2)}


def rows_of(found: list[dict[str, Any]]) -> list[Row]:
    arms, rows = [*ARMS, KEPT], []
    by = {arm: {key: np.array([[night[key] for night in line[arm]] for line in found]) for key in found[0][arm][0]} for arm in arms}

    def interval(values_W: Floats, form: str) -> str:
        middle, error = float(values_W.mean()), float(values_W.std(ddof=1) / np.sqrt(len(values_W)))
        return f"{middle:{form}} [{middle - 1.96 * error:{form}}, {middle + 1.96 * error:{form}}]"

    for arm in arms:
        nightly = " · ".join(f"{by[arm]['win at 1 nat'][:, night].mean():.3f}" for night in range(NIGHTS))
        rows.append(Row(f"{arm}: gold win rate at 1 nat, nights 1–{NIGHTS}", nightly))
        rows.append(Row(f"{arm}: as it is, night {NIGHTS}", interval(by[arm]["win"][:, -1], ".3f")))
        rows.append(Row(f"{arm}: KL from the base, nights 1–{NIGHTS}", " · ".join(f"{x:.1f}" for x in by[arm]["kl"].mean(axis=0))))
        cost = f"{by[arm]['steps'].sum(axis=1).mean():.0f} steps, {by[arm]['seconds'].sum(axis=1).mean():.2f} s"
        rows.append(Row(f"{arm}: cost of {NIGHTS} nights", cost))
    for arm in arms[1:]:
        for key in ("win at 1 nat", "win"):
            for part, nights in (("last night", slice(-1, None)), ("mean of nights 2 on", slice(1, None))):
                gap = (by[arm][key] - by["base"][key])[:, nights].mean(axis=1)
                rows.append(Row(f"{arm} − base, {key}, {part}", interval(gap, "+.4f")))
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--first", type=int, default=300)
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--state", type=Path, default=Path("build/nights.jsonl"))
    arguments = parser.parse_args()
    wanted = range(arguments.first, arguments.first + arguments.worlds)
    lines = arguments.state.read_text(encoding="utf-8").splitlines() if arguments.state.exists() else []
    kept = {line["world"]: line for line in map(json.loads, lines) if line["records"] == arguments.records}
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    with arguments.state.open("a", encoding="utf-8") as file:
        for number in track([n for n in wanted if n not in kept], description="worlds", disable=not sys.stderr.isatty()):
            kept[number] = {"world": number, "records": arguments.records} | measure(number, arguments.records)
            file.write(json.dumps(kept[number]) + "\n")
            file.flush()
    title = f"Nights: {len(wanted)} worlds from {arguments.first} on, {arguments.records} new records a night"
    report(title, rows_of([kept[number] for number in wanted]), arguments.save)


if __name__ == "__main__":
    main()
