"""Agreement and exchange rates of sources on the known mixture, against the truth. Nothing is asserted.

    python -m tests.benchmarks.bench_source_value [--features text|policy|both]

Worlds, settings and seeds 0–4 were fixed before the first run. Every source writes as people do (shift 0) or with its bias (shift 1), one
source a record; labels of a source are reversed with the probability given, those of people never. The truth of the agreement is exact:
p = P(a person prefers the stated winner) = Φ(gap of gold rewards/(√2·LABEL_STD)) for every pair, A = E[p], C = E[p² + (1 − p)²], and
a = 1 − (C − A)/(2C − 1), which is 1 − η for reversals. The truth of the exchange rate is an oracle's: the golden labels that a head
needs, by the gold order of fresh people's pairs, to be as good as golden + source: it is read off as accuracy, in the last columns.
Beside the estimate of the stage ``value`` two others: by moments, and with a bias of each source for text statistics.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig, TestbedConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.data.records import fold_of, hash_prompt
from dora_core.evaluation.metrics import sigmoid
from dora_core.models.loading import build_policy, train_tokenizer
from dora_core.models.logprobs import ResponseLogps, represent_responses
from dora_core.selection.exchange import exchange_rates
from dora_core.selection.features import PolicyFeatures, TextFeatures, policy_vectors
from dora_core.selection.label_trust import Trust, em_trust, held_out_label_probabilities, reward_model_trust
from dora_core.selection.proxy import CrossFit, Floats, ProxyPairs, choose_ridge, fit
from dora_core.selection.reversal import noise_rate
from dora_core.testbed.mixture import GOLDEN, LABEL_STD, Testbed
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks
from dora_core.training.loop import fit as train
from dora_core.training.sft import SftTask

FOLDS = 4
BIAS_RIDGE = 10.0
Features = Callable[[Sequence[str], Sequence[str]], Floats]
POLICY = ModelConfig(hidden_size=96, layers=2, heads=4, vocab_size=800)
TEXT = TextConfig(max_prompt_tokens=64, max_response_tokens=128)
SFT = OptimizationConfig(epochs=6, batch_size=32, learning_rate=2e-3)
WORLDS = {  # name: prompts, golden share, shift, share of reversed labels by source
    "as people": (500, 0.35, 0.0, (0.0, 0.0, 0.0)),
    "reversed 0, 20, 40 %": (500, 0.35, 0.0, (0.0, 0.2, 0.4)),
    "reversed 40, 70, 100 %": (500, 0.35, 0.0, (0.4, 0.7, 1.0)),
    "small bias (.3)": (500, 0.35, 0.3, (0.0, 0.0, 0.0)),
    "biased judges (1)": (500, 0.35, 1.0, (0.0, 0.0, 0.0)),
    "few golden labels (5 %)": (500, 0.05, 0.0, (0.0, 0.2, 0.4)),
}


class World:
    """Pairs of a mixture and, for each, the gap of gold rewards of its stated winner."""

    def __init__(self, prompts: int, alpha: float, shift: float, noise: tuple[float, ...], seed: int, kind: str = "text"):
        shape: dict[str, Any] = {"prompts": prompts, "responses_per_prompt": 3, "one_source_per_record": True, "seed": seed}
        config = TestbedConfig(alpha=alpha, shift=shift, sources=len(noise), **shape)
        testbed, rng = Testbed(config), np.random.default_rng([seed, 1])
        self.names = list(testbed.sources)
        rows = testbed.generate()
        fresh = Testbed(config.model_copy(update={"seed": seed + 1000, "alpha": 0.9, "prompts": 300})).generate()
        fresh = [row for row in fresh if row["labeller"] == GOLDEN]
        for row in rows:
            if row["labeller"] != GOLDEN and rng.random() < noise[self.names.index(row["labeller"]) - 1]:
                row["rewards"] = [-reward for reward in row["rewards"]]
        prompts_N, responses_N = [row["prompt"] for row in rows for _ in row["responses"]], [y for row in rows for y in row["responses"]]
        text = TextFeatures.fit(prompts_N, responses_N, buckets=128)
        if kind == "text":
            self.features: Features = text
        else:
            represent = trained_policy(rows, seed)
            policy = PolicyFeatures.fit(represent(prompts_N, responses_N))
            parts = [text] if kind == "both" else []
            self.features = lambda x, y: np.concatenate([*(part(x, y) for part in parts), policy(represent(x, y))], axis=1)
        self._surface, self._has_text = text.basis.width, kind != "policy"
        self.pairs, self.gap_P = self._pairs(testbed, rows)
        self.fresh, self.fresh_gap = self._pairs(testbed, fresh)

    def _pairs(self, testbed: Testbed, rows: list[dict]) -> tuple[ProxyPairs, NDArray[np.float64]]:
        flat = [(row["prompt"], y) for row in rows for y in row["responses"]]
        values = self.features([x for x, _ in flat], [y for _, y in flat])
        gold = np.array([testbed.gold_reward(x, y) for x, y in flat])
        found, start = list[tuple[int, int, int]](), 0
        for number, row in enumerate(rows):
            r = row["rewards"]
            found += [(number, start + i, start + j) for i in range(len(r)) for j in range(len(r)) if r[i] > r[j]]
            start += len(r)
        record, winner, loser = np.array(found).T
        group = np.array([self.names.index(row["labeller"]) for row in rows])[record]
        prompt = np.array([hash_prompt([{"role": "user", "content": row["prompt"]}]) for row in rows], dtype=np.uint64)[record]
        weight = 1.0 / np.bincount(record)[record]
        return ProxyPairs(values[winner] - values[loser], group, prompt, fold_of(prompt, FOLDS), weight), gold[winner] - gold[loser]

    @property
    def surface_PD(self) -> Floats:
        """Differences of text statistics alone, (P, B); with features of the policy alone there are none."""
        return self.pairs.difference_PD[:, : self._surface] if self._has_text else np.zeros((len(self.pairs), 0))

    def agreement(self, group: int) -> float:
        """a of the module docstring."""
        own = self.pairs.group_P == group
        cdf = NormalDist().cdf
        p, weight = np.array([cdf(gap / (LABEL_STD * 2**0.5)) for gap in self.gap_P[own]]), self.pairs.weight_P[own]
        agree, two = np.average(p, weights=weight), np.average(p**2 + (1 - p) ** 2, weights=weight)
        return float(1 - (two - agree) / (2 * two - 1))

    def accuracy(self, weight_P: NDArray[np.float64], ridge: float) -> float:
        """Share of fresh people's pairs whose gold order the head of these weights has."""
        weight = weight_P.mean(axis=0) if weight_P.ndim == 2 else weight_P
        head = fit(self.pairs.difference_PD, weight * self.pairs.weight_P, ridge=ridge)
        right = head.margins(self.fresh.difference_PD) * np.sign(self.fresh_gap) > 0
        return float(np.average(right[self.fresh_gap != 0], weights=self.fresh.weight_P[self.fresh_gap != 0]))


def trained_policy(rows: list[dict], seed: int) -> Features:
    """Vectors of (prompt, response) rows by a tiny policy that has learnt people's responses, as in the stage ``sft``."""
    import tempfile
    from pathlib import Path

    import torch

    texts = (text for row in rows for text in (row["prompt"], *row["responses"]))
    tokenizer = train_tokenizer(texts, vocab_size=POLICY.vocab_size)
    torch.manual_seed(seed)
    policy, encoder = build_policy(POLICY, tokenizer, TEXT.max_prompt_tokens + TEXT.max_response_tokens), Encoder(tokenizer, TEXT)
    examples = [
        ([{"role": "user", "content": row["prompt"]}], y)
        for row in rows
        for y, source in zip(row["responses"], row["sources"], strict=True)
        if source == GOLDEN
    ]
    logps, worker, execution = ResponseLogps(policy), Worker(), Execution()
    task = SftTask(logps, list(policy.model.layers), examples, encoder, worker, tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        train(task, SFT.evolve(seed=seed), execution, worker, FolderHooks(Path(folder)))
    policy.eval()

    def represent(prompts: Sequence[str], responses: Sequence[str]) -> Floats:
        encoded = [encoder.encode([{"role": "user", "content": x}], y) for x, y in zip(prompts, responses, strict=True)]
        found = represent_responses(logps, encoded, tokenizer.pad_token_id, 8192, torch.device("cpu"))
        return policy_vectors(found, np.array([len(one.response_ids) for one in encoded]))

    return represent


def by_moments(stated_P: Floats, people_P: Floats, weight_P: Floats) -> float:
    """a of the module docstring from estimates: ½ + (A − ½)/(2(C − ½)), A the chance that a person agrees with the source.

    Args:
        stated_P: probability that the source prefers the first response; 1 for the label itself.
        people_P: probability that people do.
    """
    agree = np.average(stated_P * people_P + (1 - stated_P) * (1 - people_P), weights=weight_P)
    two = np.average(people_P**2 + (1 - people_P) ** 2, weights=weight_P)
    return float(np.clip(0.5 + (agree - 0.5) / (2 * (two - 0.5)), 0, 1))


def with_bias(world: World, trust: Trust, group: int) -> float:
    """Agreement of a source whose labels are modelled by logit = α·m + b·s: m people's out-of-fold margin, s differences of text
    statistics, so that what the judge makes of length and format is its own; the model is cross-fitted too."""
    pairs, own = world.pairs, world.pairs.group_P == group
    people_P = trust.people_P
    columns_PD = np.column_stack([np.log(people_P / (1 - people_P)), world.surface_PD])
    as_golden_P = (~own).astype(int)  # its labels take the place of golden ones
    of_source = ProxyPairs(columns_PD, as_golden_P, pairs.prompt_P, pairs.fold_P, pairs.weight_P)
    fitted = CrossFit(of_source, BIAS_RIDGE)
    stated_P = sigmoid(fitted.out_of_fold(fitted.fit(own.astype(np.float64))))
    return by_moments(stated_P[own], people_P[own], pairs.weight_P[own])


def agreements(world: World) -> dict[str, list[float]]:
    """Truth and estimates of every source's agreement."""
    pairs, sources = world.pairs, [int(group) for group in np.unique(world.pairs.group_P) if group]
    ridge = choose_ridge(pairs, pairs.golden_P.astype(np.float64))
    trust = reward_model_trust(pairs, ridge, samples=100)
    em = em_trust(pairs, ridge, samples=2)
    truth = {group: world.agreement(group) for group in sources}
    owned = {group: pairs.group_P == group for group in sources}
    return {
        "truth": list(truth.values()),
        "estimate": [trust.agreement[group].value for group in sources],
        "reversal": [1 - noise_rate(trust.people_P[own], pairs.weight_P[own]) for own in owned.values()],
        "covered": [float(trust.agreement[g].low <= min(truth[g], 1.0) <= trust.agreement[g].high) for g in sources],
        "moments": [by_moments(np.ones(own.sum()), trust.people_P[own], pairs.weight_P[own]) for own in owned.values()],
        "bias": [with_bias(world, trust, group) for group in sources],
        "biased": [float(trust.deviations[group].biased) for group in sources],
        "em": [em.agreement[group].value for group in sources],
        "golden_loss": [trust.golden_loss or np.nan],
    }


def rates(world: World, few_prompts: int) -> dict[str, list[float]]:
    """Exchange rates, and the accuracy of what they train."""
    pairs = world.pairs
    golden = pairs.golden_P.astype(np.float64)
    ridge = choose_ridge(pairs, golden)
    trust = reward_model_trust(pairs, ridge, samples=50)
    held = held_out_label_probabilities(pairs, trust, ridge)
    exchange = exchange_rates(pairs, {"trust": held}, few_prompts=few_prompts, samples=500)
    careful = exchange_rates(pairs, few_prompts=10_000, samples=2)
    return {
        "rate": [exchange.sources[group].rate.value for group in sorted(exchange.sources)],
        "accuracy": [
            world.accuracy(golden, ridge),
            world.accuracy(np.ones(len(pairs)), exchange.ridge),
            world.accuracy(exchange.weight_P, exchange.ridge),
            world.accuracy(careful.weight_P, careful.ridge),
        ],
    }


def largest_error(runs: list[dict[str, list[float]]], key: str) -> float:
    return max(abs(e - min(t, 1.0)) for run in runs for e, t in zip(run[key], run["truth"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--worlds", type=int, nargs="*", default=range(len(WORLDS)), help="Positions of the worlds to run.")
    parser.add_argument("--few-prompts", type=int, default=100)
    parser.add_argument("--features", choices=["text", "policy", "both"], default="text")
    parser.add_argument("--agreement-only", action="store_true", help="no exchange rates, which take most of the time")
    options = parser.parse_args()
    print("means over seeds (and the largest error of an agreement), sources in order; accuracy on fresh people's pairs")
    for name, (prompts, alpha, shift, noise) in [list(WORLDS.items())[i] for i in options.worlds]:
        runs = list[dict[str, list[float]]]()
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            world = World(prompts, alpha, shift, noise, seed, options.features)
            runs.append(agreements(world) | ({} if options.agreement_only else rates(world, options.few_prompts)))
        mean = {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}
        cells = {key: " ".join(f"{value:.2f}" for value in values) for key, values in mean.items()}
        found = [f"{key} {cells[key]} (largest error {largest_error(runs, key):.2f})" for key in ("estimate", "moments", "bias", "em")]
        print(f"{name:24} agreement {cells['truth']} | {', '.join(found)}", flush=True)
        print(f"{'':24} found biased {cells['biased']}; without that: {cells['reversal']}")
        print(f"{'':24} intervals cover {mean['covered'].mean():.0%}, loss of the golden head {mean['golden_loss'][0]:.3f}", flush=True)
        if options.agreement_only:
            continue
        golden, alike, best, careful = mean["accuracy"]
        zero = [sum(run["rate"][k] == 0 for run in runs) for k in range(len(noise))]
        print(f"{'':24} rate {cells['rate']}, 0 in {zero} of {options.seeds}")
        print(f"{'':24} accuracy: golden {golden:.3f}, alike {alike:.3f}, best {best:.3f}, one standard error {careful:.3f}", flush=True)


if __name__ == "__main__":
    main()
