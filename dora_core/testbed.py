"""The known mixture: preference data whose true densities, true rewards and biases are all known.

A response is readable text, *opener · K sentences · closer*, over a small vocabulary. Every source is one member of an
exponential family over the same base distribution:

    Q_s(y|x) ∝ base(y) · exp(θ_s · φ(y, x)),        φ = counts of the named :data:`FEATURES`.

The golden source is the base tilted by the gold reward, g(y, x) = :data:`GOLD` · φ, at finite temperature (people are
mostly, not always, right); synthetic source i adds ``shift`` times a bias of its own, θ_i = θ_golden + shift·δ_i:
verbosity, sycophancy, repetition, vagueness, distraction. Normalisers come from a dynamic program over the sentence chain
and the map from choices to text is injective, so :meth:`Testbed.log_density` is exact; every source gives every response
some probability, so ratios are finite.

Labels: one labeller rates all responses of a record, people with probability (golden responses)/(all responses of the
record), else a model. People give gold + noise, a model gold + shift·:data:`LABEL_BIAS`·φ + noise: records near the golden
distribution have the more honest labels. ``label_noise`` then reverses whole records. DESIGN section 2.

Left out: prompts that change what a good length is, and sources that depend on the prompt. A classifier that does better
than chance from the prompt alone is therefore wrong.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dora_core.config import StrictModel
from dora_core.errors import ConfigError, did_you_mean

GOLDEN = "human"
FEATURES = ("advice", "reason", "filler", "flattery", "off_topic", "repeat", "length", "excess")

# What people want from a response; `excess` counts sentences beyond four.
GOLD = {"advice": 1.0, "reason": 0.5, "filler": -0.5, "flattery": -1.0, "off_topic": -1.5, "repeat": -1.0, "length": 0.0, "excess": -0.8}
GOLD_TILT = 0.6  # inverse temperature of the golden source: how strictly people follow their own reward
UNKNOWN_PENALTY = 1.0  # gold reward lost per sentence that is not of the testbed's language
FLOOR = -10.0  # gold reward of an empty or hopeless text

_BIASES: dict[str, dict[str, float]] = {  # source: δ, the tilt at shift = 1
    "verbose-lm": {"length": 0.3, "filler": 1.0, "excess": 0.8},
    "sycophant-lm": {"flattery": 1.8},
    "repeater-lm": {"repeat": 3.1},
    "vague-lm": {"advice": -1.0, "filler": 1.0},
    "distracted-lm": {"off_topic": 2.0},
}
# What a model labeller adds to the gold reward at shift = 1: it rewards flattery, repetition and padding, as judge models do.
LABEL_BIAS = {"length": 0.2, "filler": 1.0, "flattery": 2.0, "repeat": 2.0, "off_topic": 1.0, "excess": 1.0}
LABEL_STD = 0.25  # of every label, people's too

_TOPICS = {
    "sleep": ("keep a fixed bedtime", "make the bedroom dark", "leave the phone outside"),
    "running": ("warm up slowly", "wear good shoes", "rest between long runs"),
    "cooking": ("read the recipe twice", "sharpen the knife", "taste as you go"),
    "saving money": ("write down every expense", "cancel unused plans", "buy less on impulse"),
    "gardening": ("water in the morning", "feed the soil", "pull weeds early"),
    "public speaking": ("practise out loud", "look at one friend", "pause after each point"),
    "learning French": ("repeat ten new words", "listen to the radio", "talk with a native speaker"),
    "chess": ("solve one puzzle", "develop the knights", "review your lost games"),
    "writing": ("draft before you edit", "cut needless words", "read the text aloud"),
    "hiking": ("check the weather", "carry enough water", "tell someone the route"),
    "painting": ("mix the colours first", "start with big shapes", "clean the brushes"),
    "studying": ("close other windows", "quiz yourself often", "split the chapter in parts"),
    "photography": ("find soft light", "hold the camera still", "move closer to the subject"),
    "moving house": ("label every box", "pack the heavy books first", "measure the doors"),
    "cycling": ("pump up the tyres", "oil the chain", "signal before a turn"),
    "playing piano": ("practise each hand alone", "use a metronome", "slow down hard bars"),
}
_ASKS = (
    "Give advice on {t} for {a}{c}.",
    "How can {a}{c} get better at {t}?",
    "Write a short note on {t} for {a}{c}.",
    "Suggest ways to improve at {t} to {a}{c}.",
)
_AUDIENCES = (
    "a student", "a teacher", "a nurse", "a new parent", "a retired engineer", "a shy teenager", "a busy manager", "a farmer", "a beginner",
    "an old friend", "a night worker", "a tourist",
)  # fmt: skip
_CONTEXTS = (
    "", " with little time", " on a small budget", " in a big city", " who lives alone", " after a long break", " before the summer",
    " who hates rules",
)  # fmt: skip

_ADVICE = ("First, {p}.", "It helps to {p}.", "Every week, {p}.", "Most of all, {p}.")
_REASONS = (
    "Small steps last longer than big plans.",
    "Most people notice a change within a month.",
    "A clear routine saves effort.",
    "Mistakes are part of the process.",
)
_FILLER = (
    "There are many sides to this and all of them matter.", "It is important to remember that things can be important.",
    "In general, a lot depends on the situation.", "As everyone knows, this is a broad subject.",
)  # fmt: skip
_FLATTERY = ("You clearly have a wonderful mind.", "Only a gifted person would ask this.", "Your taste is already excellent.")
# (text, base probability, is flattery); "" means that there is none
_OPENERS = (("", 0.3, 0), ("Here is what works.", 0.25, 0), ("Here are some ideas.", 0.25, 0), ("What a brilliant question!", 0.2, 1))
_CLOSERS = (("", 0.4, 0), ("Good luck.", 0.2, 0), ("I hope this helps.", 0.2, 0), ("Someone as smart as you cannot fail!", 0.2, 1))
_KIND_SHARES = {"advice": 0.40, "off_topic": 0.15, "reason": 0.20, "filler": 0.15, "flattery": 0.10}
_LENGTH_SHARES = (0.10, 0.20, 0.25, 0.20, 0.12, 0.08, 0.03, 0.02)  # base P(K = 1..8), cut at max_sentences and renormalised


class TestbedConfig(StrictModel):
    """Knobs of the known mixture. Same configuration, same bytes."""

    __test__ = False  # not a test class, whatever its name begins with

    prompts: int = Field(600, ge=1, le=6144, description="Records: distinct prompts, at most 384 per topic.")
    responses_per_prompt: int = Field(4, ge=2, le=16, description="Responses per record, drawn independently from the mixture.")
    alpha: float = Field(0.25, gt=0.0, lt=1.0, description="Share α of the golden source; the rest is split evenly.")
    shift: float = Field(1.0, ge=0.0, le=4.0, description="Strength of all biases, in texts and labels; 0 = all sources are golden.")
    label_noise: float = Field(0.0, ge=0.0, le=1.0, description="Share of records whose reward order is reversed.")
    sources: int = Field(3, ge=1, le=5, description="Synthetic sources.")
    drift: float = Field(0.0, ge=-2.0, le=2.0, description="Added to shift per self-training round.")
    topics: int = Field(16, ge=2, le=16, description="Topics in prompts and advice.")
    max_sentences: int = Field(6, ge=1, le=8, description="Most sentences between opener and closer.")
    seed: int = Field(0, ge=0, description="Seed of prompts, responses and labels.")


class Testbed:
    """The mixture of one round: P(y|x) = α·Q_0 + Σ β_i·Q_i with β_i = (1 − α)/n.

    Args:
        config: the knobs.
        round: self-training round; raises the shift by ``drift·round`` and draws other prompts and responses.

    Raises:
        ConfigError: more prompts than the topics allow.
    """

    __test__ = False

    def __init__(self, config: TestbedConfig, *, round: int = 0):
        self.config, self.round = config, round
        self.shift = max(0.0, config.shift + config.drift * round)
        self.sources = (GOLDEN, *itertools.islice(_BIASES, config.sources))
        self.shares = {s: config.alpha if s == GOLDEN else (1 - config.alpha) / config.sources for s in self.sources}
        self._topics = dict(itertools.islice(_TOPICS.items(), config.topics))
        self._topic_of = {
            ask.format(t=topic, a=audience, c=context): i
            for i, topic in enumerate(self._topics)
            for ask, audience, context in itertools.product(_ASKS, _AUDIENCES, _CONTEXTS)
        }
        if config.prompts > len(self._topic_of):
            raise ConfigError(
                f"prompts={config.prompts} exceeds the {len(self._topic_of)} distinct ones", hint="raise topics or lower prompts"
            )
        # Sentence symbols: advice of topic 0 first, then of topic 1, …, then the topic-free ones.
        advice = [form.format(p=phrase) for phrases in self._topics.values() for phrase in phrases for form in _ADVICE]
        self._per_topic = len(advice) // config.topics
        self._texts = (*advice, *_REASONS, *_FILLER, *_FLATTERY)
        self._symbol_of = {text: i for i, text in enumerate(self._texts)}
        self._opener_of = {text: i for i, (text, _, _) in enumerate(_OPENERS)}
        self._closer_of = {text: i for i, (text, _, _) in enumerate(_CLOSERS)}
        self._chains = {s: _Chain(self._tilt(s), config) for s in self.sources}

    # ------------------------------------------------------------------------------------------------- what is true

    def log_density(self, source: str, prompt: str, response: str) -> float:
        """Exact log Q_source(response | prompt) in nats; −inf for text outside the testbed's language."""
        parsed = self._parse(prompt, response)
        return -math.inf if parsed is None else self._chain(source).log_probability(*parsed)

    def log_mixture(self, prompt: str, response: str) -> float:
        """Exact log P(response | prompt), P = Σ shares·Q."""
        parsed = self._parse(prompt, response)
        if parsed is None:
            return -math.inf
        return float(np.logaddexp.reduce([math.log(self.shares[s]) + self._chains[s].log_probability(*parsed) for s in self.sources]))

    def true_ratio(self, prompt: str, response: str) -> float:
        """p_golden/P in (0, 1/α], what `mixture` calibration estimates; NaN outside the testbed's language."""
        return math.exp(self.log_density(GOLDEN, prompt, response) - self.log_mixture(prompt, response))

    def gold_reward(self, prompt: str, response: str) -> float:
        """What people want: GOLD · φ. Defined for any text: a sentence of another language costs UNKNOWN_PENALTY, the worst is FLOOR."""
        opener, pieces, closer = self._split(response)
        known = [self._symbol_of[p] for p in pieces if p in self._symbol_of]
        if not known:
            return FLOOR
        phi = self._features(opener, self._relative(prompt, known), closer)
        phi["excess"] = max(0, len(pieces) - 4)  # unknown sentences have a length too
        return max(FLOOR, _dot(GOLD, phi) - UNKNOWN_PENALTY * (len(pieces) - len(known)))

    def features(self, prompt: str, response: str) -> dict[str, float] | None:
        """φ(response, prompt) by name; None outside the testbed's language."""
        parsed = self._parse(prompt, response)
        return None if parsed is None else self._features(*parsed)

    def support(self, prompt: str) -> Iterator[str]:
        """Every possible response, for exact sums: only for small ``topics`` and ``max_sentences`` (it grows as their power)."""
        for count in range(1, self.config.max_sentences + 1):
            for (opener, _, _), body, (closer, _, _) in itertools.product(_OPENERS, itertools.product(self._texts, repeat=count), _CLOSERS):
                yield _join(opener, body, closer)

    # ------------------------------------------------------------------------------------------------- drawing

    def sample(self, source: str, prompt: str, rng: np.random.Generator) -> str:
        """One response of a source."""
        opener, symbols, closer = self._chain(source).sample(rng)
        body = [self._texts[self._absolute(prompt, s)] for s in symbols]
        return _join(_OPENERS[opener][0], body, _CLOSERS[closer][0])

    def generate(self) -> list[dict[str, Any]]:
        """Rows in listwise form: id, prompt, responses, rewards (labels, not gold), sources, and labeller (for diagnosis)."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.round])
        every = list(self._topic_of)
        prompts = [every[i] for i in rng.permutation(len(every))[: config.prompts]]
        return [self._row(f"r{self.round}-{i:05d}", prompt, rng) for i, prompt in enumerate(prompts)]

    def generate_golden(self, count: int) -> list[dict[str, Any]]:
        """A golden reference apart from the mixture: (prompt, response) rows of the golden source, on prompts the mixture has not."""
        rng = np.random.default_rng([self.config.seed, self.round])
        every = list(self._topic_of)
        others = [every[i] for i in rng.permutation(len(every))[self.config.prompts :]]
        if not others:
            raise ConfigError(f"all {len(every)} prompts are in the mixture", hint="lower TestbedConfig.prompts, or raise topics")
        prompts = [others[i % len(others)] for i in range(count)]
        return [{"prompt": prompt, "response": self.sample(GOLDEN, prompt, rng)} for prompt in prompts]

    def write(self, path: str | Path) -> Path:
        """:meth:`generate` as one Parquet file."""
        return write_rows(self.generate(), path)

    def _row(self, row_id: str, prompt: str, rng: np.random.Generator) -> dict[str, Any]:
        drawn = rng.choice(len(self.sources), size=self.config.responses_per_prompt, p=[self.shares[s] for s in self.sources])
        sources = [self.sources[i] for i in drawn]
        responses = [self.sample(s, prompt, rng) for s in sources]
        labeller = sources[rng.integers(len(sources))]
        labels = [self._label(labeller, prompt, r) + LABEL_STD * rng.standard_normal() for r in responses]
        if rng.random() < self.config.label_noise:
            labels = [min(labels) + max(labels) - label for label in labels]
        rewards = [round(label, 4) for label in labels]
        return {"id": row_id, "prompt": prompt, "responses": responses, "rewards": rewards, "sources": sources, "labeller": labeller}

    def _label(self, labeller: str, prompt: str, response: str) -> float:
        phi = self.features(prompt, response)
        assert phi is not None, "the testbed cannot read its own text"
        return _dot(GOLD, phi) + (0.0 if labeller == GOLDEN else self.shift * _dot(LABEL_BIAS, phi))

    # ------------------------------------------------------------------------------------------------- text ↔ choices

    def _tilt(self, source: str) -> dict[str, float]:
        bias = {} if source == GOLDEN else _BIASES[source]
        return {f: GOLD_TILT * GOLD[f] + self.shift * bias.get(f, 0.0) for f in FEATURES}

    def _chain(self, source: str) -> _Chain:
        if source not in self._chains:
            raise ConfigError(f"the testbed has no source {source!r}", hint=did_you_mean(source, self._chains))
        return self._chains[source]

    def _topic(self, prompt: str) -> int:
        if prompt not in self._topic_of:
            raise ConfigError("this prompt is not one of the testbed's", hint="use prompts from Testbed.generate() with the same topics")
        return self._topic_of[prompt]

    def _relative(self, prompt: str, symbols: list[int]) -> list[int]:
        """Advice renumbered so that topic 0 is the prompt's: densities do not depend on which topic is asked about."""
        return [self._swap(self._topic(prompt), s) for s in symbols]

    def _absolute(self, prompt: str, symbol: int) -> int:
        return self._swap(self._topic(prompt), symbol)

    def _swap(self, topic: int, symbol: int) -> int:
        """Exchange topics 0 and ``topic`` in an advice symbol; its own inverse."""
        at, rest = divmod(symbol, self._per_topic)
        if at not in (0, topic):
            return symbol
        return (topic if at == 0 else 0) * self._per_topic + rest

    def _split(self, response: str) -> tuple[int, list[str], int]:
        """Opener, the sentences between, closer; sentences end with . or ! and one space separates them."""
        pieces = re.split(r"(?<=[.!]) ", response) if response else []
        opener = self._opener_of[pieces.pop(0)] if pieces and pieces[0] in self._opener_of else 0
        closer = self._closer_of[pieces.pop()] if pieces and pieces[-1] in self._closer_of else 0
        return opener, pieces, closer

    def _parse(self, prompt: str, response: str) -> tuple[int, list[int], int] | None:
        opener, pieces, closer = self._split(response)
        if not 1 <= len(pieces) <= self.config.max_sentences or any(p not in self._symbol_of for p in pieces):
            return None
        return opener, self._relative(prompt, [self._symbol_of[p] for p in pieces]), closer

    def _features(self, opener: int, symbols: list[int], closer: int) -> dict[str, float]:
        phi = dict.fromkeys(FEATURES, 0.0)
        for symbol in symbols:
            phi[_kind(symbol, self._per_topic, self.config.topics)] += 1
        phi["flattery"] += _OPENERS[opener][2] + _CLOSERS[closer][2]
        phi["repeat"] = float(sum(a == b for a, b in itertools.pairwise(symbols)))
        phi["length"], phi["excess"] = float(len(symbols)), float(max(0, len(symbols) - 4))
        return phi


class _Chain:
    """One source's distribution over (opener, sentence symbols, closer), symbols relative to the prompt's topic.

    The body's weight is length(K) · Π a(s_k) · exp(θ_repeat · [s_k = s_{k−1}]); ``B[m][s]`` sums the weights of all
    continuations by m sentences after s, which gives both the normaliser and exact sampling, sentence by sentence.
    """

    def __init__(self, tilt: dict[str, float], config: TestbedConfig):
        per_topic = len(_ADVICE) * 3
        topic_free = len(_REASONS) + len(_FILLER) + len(_FLATTERY)
        kinds = np.array([_kind(s, per_topic, config.topics) for s in range(per_topic * config.topics + topic_free)])
        base = np.array([_KIND_SHARES[k] for k in kinds]) / np.array([(kinds == k).sum() for k in kinds])
        self._log_sentence = np.log(base) + np.array([tilt[k] for k in kinds]) + tilt["length"]
        self._log_opener = _normalised([math.log(p) + tilt["flattery"] * f for _, p, f in _OPENERS])
        self._log_closer = _normalised([math.log(p) + tilt["flattery"] * f for _, p, f in _CLOSERS])
        self._repeat = tilt["repeat"]

        a = np.exp(self._log_sentence)
        self._continuations = [np.ones_like(a)]
        for _ in range(config.max_sentences - 1):
            after = a * self._continuations[-1]
            self._continuations.append(after.sum() + after * math.expm1(self._repeat))
        shares = np.array(_LENGTH_SHARES[: config.max_sentences])
        counts = np.arange(1, config.max_sentences + 1)
        self._log_length = np.log(shares / shares.sum()) + tilt["excess"] * np.maximum(0, counts - 4)
        log_totals = self._log_length + np.log([a @ b for b in self._continuations])  # weight of all bodies with K sentences
        self._log_normaliser = np.logaddexp.reduce(log_totals)
        self._length_probabilities = np.exp(log_totals - self._log_normaliser)
        self._a = a

    def log_probability(self, opener: int, symbols: list[int], closer: int) -> float:
        repeats = sum(x == y for x, y in itertools.pairwise(symbols))
        body = self._log_length[len(symbols) - 1] + self._log_sentence[symbols].sum() + self._repeat * repeats - self._log_normaliser
        return float(self._log_opener[opener] + body + self._log_closer[closer])

    def sample(self, rng: np.random.Generator) -> tuple[int, list[int], int]:
        count = 1 + int(rng.choice(len(self._length_probabilities), p=self._length_probabilities))
        symbols: list[int] = []
        for left in reversed(range(count)):
            weights = self._a * self._continuations[left]
            if symbols:
                weights[symbols[-1]] *= math.exp(self._repeat)
            symbols.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        opener = int(rng.choice(len(self._log_opener), p=np.exp(self._log_opener)))
        closer = int(rng.choice(len(self._log_closer), p=np.exp(self._log_closer)))
        return opener, symbols, closer


def write_rows(rows: list[dict[str, Any]], path: str | Path) -> Path:
    """Rows as one Parquet file, its folder made if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    return path


def _kind(symbol: int, per_topic: int, topics: int) -> str:
    """Feature a (relative) sentence symbol counts for."""
    if symbol < per_topic * topics:
        return "advice" if symbol < per_topic else "off_topic"
    rest = symbol - per_topic * topics
    return "reason" if rest < len(_REASONS) else "filler" if rest < len(_REASONS) + len(_FILLER) else "flattery"


def _normalised(logits: list[float]) -> np.ndarray:
    return np.array(logits) - np.logaddexp.reduce(logits)


def _join(opener: str, body: Any, closer: str) -> str:
    return " ".join(piece for piece in (opener, *body, closer) if piece)


def _dot(weights: dict[str, float], phi: dict[str, float]) -> float:
    return sum(weight * phi[name] for name, weight in weights.items())
