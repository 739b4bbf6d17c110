"""The known mixture: preference data whose true densities, true rewards and biases are all known.

A response is readable text, *opener · K sentences · closer*, over a small vocabulary. Every source is one member of an
exponential family over the same base distribution:

    Q_s(y|x) ∝ base(y) · exp(θ_s · φ(y, x)),        φ = counts of the named :data:`FEATURES`.

The golden source is the base tilted by the gold reward, g(y, x) = :data:`GOLD` · φ, at finite temperature (people are
mostly, not always, right); synthetic source i adds ``shift`` times a bias of its own, θ_i = θ_golden + shift·δ_i:
verbosity, sycophancy, repetition, vagueness, distraction. The separate golden reference is the golden source, or, with
``golden_shift``, one biased towards the first synthetic source: θ_golden + golden_shift·δ_1. Normalisers come from a
dynamic program over the sentence chain and the map from choices to text is injective, so :meth:`Testbed.log_density` is
exact; every source gives every response some probability, so ratios are finite.

With ``prompt_shift`` the sources answer different topics (``topics.py``): the share of source s among the responses to a prompt is then
P(s | topic), its share of all responses and the distribution of topics over prompts are as ever, and the golden reference has
the topics of the golden source. Q_s(y|x) does not change, so P(y|x) = Σ_s P(s | topic(x))·Q_s(y|x).

The sources of a record's responses are drawn independently, or, with ``one_source_per_record``, once for all of them, as in the
paper's data sets and in every self-training round. The mixture P(y|x) of responses is the same.

Labels: one labeller rates all responses of a record, people with probability (golden responses)/(all responses of the
record), else a model. People give gold + noise, a model gold + shift·:data:`LABEL_BIAS`·φ + noise: records near the golden
distribution have the more honest labels. ``label_noise`` then reverses whole records, and ``unlabelled`` hides the sources of
whole records; neither changes a text, and a higher level contains the records of a lower one.

Left out: prompts with different ideal lengths. Without ``prompt_shift`` a classifier that predicts the source better than
chance from the prompt alone is wrong.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dora_core.config.method import TestbedConfig
from dora_core.errors import ConfigError, DataError, did_you_mean
from dora_core.testbed import language, topics

GOLDEN = "human"
REFERENCE = "golden-reference"  # distribution of the separate golden reference: GOLDEN, unless golden_shift > 0
FEATURES = ("advice", "reason", "filler", "flattery", "off_topic", "repeat", "length", "excess")

# Weights of the gold reward; `excess` counts sentences beyond four.
GOLD = {"advice": 1.0, "reason": 0.5, "filler": -0.5, "flattery": -1.0, "off_topic": -1.5, "repeat": -1.0, "length": 0.0, "excess": -0.8}
GOLD_TILT = 0.6  # inverse temperature of the golden source
UNKNOWN_PENALTY = 1.0  # gold reward lost per sentence that is not of the testbed's language
FLOOR = -10.0  # gold reward of an empty or hopeless text

_BIASES: dict[str, dict[str, float]] = {  # source: δ, the tilt at shift = 1
    "verbose-lm": {"length": 0.3, "filler": 1.0, "excess": 0.8},
    "sycophant-lm": {"flattery": 1.8},
    "repeater-lm": {"repeat": 3.1},
    "vague-lm": {"advice": -1.0, "filler": 1.0},
    "distracted-lm": {"off_topic": 2.0},
}
# Bias of a model labeller, added to the gold reward at shift = 1: it rewards flattery, repetition and padding, as judge models do.
LABEL_BIAS = {"length": 0.2, "filler": 1.0, "flattery": 2.0, "repeat": 2.0, "off_topic": 1.0, "excess": 1.0}
LABEL_STD = 0.25  # of every label, people's too

_ROWS = pa.schema(  # explicit, because a type cannot be inferred from a column of hidden sources
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("responses", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float64())),
        ("sources", pa.list_(pa.string())),
        ("labeller", pa.string()),
    ]
)
_KIND_SHARES = {"advice": 0.40, "off_topic": 0.15, "reason": 0.20, "filler": 0.15, "flattery": 0.10}
_LENGTH_SHARES = (0.10, 0.20, 0.25, 0.20, 0.12, 0.08, 0.03, 0.02)  # base P(K = 1..8), cut at max_sentences and renormalised


class Testbed:
    """The mixture of one round: P(y|x) = α·Q_0 + Σ β_i·Q_i with β_i = (1 − α)/n.

    Args:
        config: parameters of the mixture.
        round: self-training round; raises the shift by ``drift·round`` and draws other prompts and responses.

    Raises:
        ConfigError: more prompts than the topics allow.
    """

    __test__ = False  # pytest collects classes named Test…

    def __init__(self, config: TestbedConfig, *, round: int = 0):
        self.config, self.round = config, round
        self.shift = max(0.0, config.shift + config.drift * round)
        self.sources = (GOLDEN, *itertools.islice(_BIASES, config.sources))
        self.shares = {s: config.alpha if s == GOLDEN else (1 - config.alpha) / config.sources for s in self.sources}
        self._topics = dict(itertools.islice(language.TOPICS.items(), config.topics))
        self._shares_ST = topics.shares_by_topic(np.array(list(self.shares.values())), config.topics, config.prompt_shift)
        self._topic_of = {
            ask.format(t=topic, a=audience, c=context): i
            for i, topic in enumerate(self._topics)
            for ask, audience, context in itertools.product(language.ASKS, language.AUDIENCES, language.CONTEXTS)
        }
        if config.prompts > len(self._topic_of):
            raise ConfigError(
                f"prompts={config.prompts} exceeds the {len(self._topic_of)} distinct ones", hint="raise topics or lower prompts"
            )
        # Sentence symbols: advice of topic 0 first, then of topic 1, …, then the topic-free ones.
        advice = [form.format(p=phrase) for phrases in self._topics.values() for phrase in phrases for form in language.ADVICE]
        self._per_topic = len(advice) // config.topics
        self._texts = (*advice, *language.REASONS, *language.FILLER, *language.FLATTERY)
        self._symbol_of = {text: i for i, text in enumerate(self._texts)}
        self._opener_of = {text: i for i, (text, _, _) in enumerate(language.OPENERS)}
        self._closer_of = {text: i for i, (text, _, _) in enumerate(language.CLOSERS)}
        tilts = {s: self._tilt({} if s == GOLDEN else _BIASES[s], self.shift) for s in self.sources}
        tilts[REFERENCE] = self._tilt(_BIASES[self.sources[1]], config.golden_shift)
        self._chains = {s: _Chain(tilt, config) for s, tilt in tilts.items()}

    # ------------------------------------------------------------------------------------------------- exact quantities

    def log_density(self, source: str, prompt: str, response: str) -> float:
        """Return the exact log Q_source(response | prompt), nats, of a source or :data:`REFERENCE`; −inf outside the testbed's language."""
        parsed = self._parse(prompt, response)
        return -math.inf if parsed is None else self._chain(source).log_probability(*parsed)

    def log_densities(self, prompt: str, response: str) -> dict[str, float]:
        """Return :meth:`log_density` for every source of the mixture."""
        return {s: self.log_density(s, prompt, response) for s in self.sources}

    def log_mixture(self, prompt: str, response: str) -> float:
        """Return the exact log P(response | prompt), P = Σ shares·Q."""
        densities, shares = self.log_densities(prompt, response), self.shares_of(prompt)
        return float(np.logaddexp.reduce([math.log(shares[s]) + log_q for s, log_q in densities.items()]))

    def shares_of(self, prompt: str) -> dict[str, float]:
        """Return P(source | topic of the prompt), golden first: :attr:`shares` without ``prompt_shift``."""
        return dict(zip(self.sources, self._shares_ST[:, self._topic(prompt)].tolist(), strict=True))

    def log_prompt_ratio(self, source: str, prompt: str) -> float:
        """Return the exact log p_golden(x)/p_source(x) of a prompt among those that the two sources answer, nats."""
        golden, other = (self.shares_of(prompt)[s] / self.shares[s] for s in (GOLDEN, source))
        return math.log(golden / other)

    def true_ratio(self, prompt: str, response: str) -> float:
        """Return p_golden(y|x)/P(y|x) in (0, 1/P(golden | topic)], the target of `mixture` calibration; NaN outside the language."""
        return math.exp(self.log_density(GOLDEN, prompt, response) - self.log_mixture(prompt, response))

    def gold_reward(self, prompt: str, response: str) -> float:
        """Return the gold reward GOLD · φ, for any text: a sentence of another language costs UNKNOWN_PENALTY; FLOOR is the minimum."""
        opener, pieces, closer = self._split(response)
        known = [self._symbol_of[p] for p in pieces if p in self._symbol_of]
        if not known:
            return FLOOR
        phi = self._features(opener, self._relative(prompt, known), closer)
        phi["excess"] = max(0, len(pieces) - 4)  # unknown sentences have a length too
        return max(FLOOR, _dot(GOLD, phi) - UNKNOWN_PENALTY * (len(pieces) - len(known)))

    def features(self, prompt: str, response: str) -> dict[str, float] | None:
        """Return φ(response, prompt) by name; None outside the testbed's language."""
        parsed = self._parse(prompt, response)
        return None if parsed is None else self._features(*parsed)

    def support(self, prompt: str) -> Iterator[str]:
        """Iterate over every possible response, for exact sums: only for small ``topics`` and ``max_sentences`` (exponential growth)."""
        for count in range(1, self.config.max_sentences + 1):
            for (opener, _, _), body, (closer, _, _) in itertools.product(
                language.OPENERS, itertools.product(self._texts, repeat=count), language.CLOSERS
            ):
                yield _join(opener, body, closer)

    # ------------------------------------------------------------------------------------------------- drawing

    def sample(self, source: str, prompt: str, rng: np.random.Generator) -> str:
        """Draw one response of a source."""
        opener, symbols, closer = self._chain(source).sample(rng)
        body = [self._texts[self._absolute(prompt, s)] for s in symbols]
        return _join(language.OPENERS[opener][0], body, language.CLOSERS[closer][0])

    def generate(self) -> list[dict[str, Any]]:
        """Draw listwise rows: id, prompt, responses, rewards (labels, not gold), sources (None: hidden), labeller (for diagnosis)."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.round])
        every = list(self._topic_of)
        prompts = [every[i] for i in rng.permutation(len(every))[: config.prompts]]
        rows = [self._row(f"r{self.round}-{i:05d}", prompt, rng) for i, prompt in enumerate(prompts)]
        hidden = (
            np.random.default_rng([config.seed, self.round, 1]).random(len(rows)) < config.unlabelled
        )  # its own generator: the draws of the rows stay the same
        return [row | {"sources": [None] * len(row["sources"])} if hide else row for row, hide in zip(rows, hidden, strict=True)]

    def generate_golden(self, count: int) -> list[dict[str, Any]]:
        """Draw a separate golden reference: (prompt, response) rows of :data:`REFERENCE`, on prompts outside the mixture."""
        rng = np.random.default_rng([self.config.seed, self.round])
        every = list(self._topic_of)
        others = [every[i] for i in rng.permutation(len(every))[self.config.prompts :]]
        if not others:
            raise ConfigError(f"all {len(every)} prompts are in the mixture", hint="lower TestbedConfig.prompts, or raise topics")
        if self.config.prompt_shift > 0:  # the topics of golden responses
            share = np.array([self.shares_of(prompt)[GOLDEN] for prompt in others])
            prompts = [others[i] for i in rng.choice(len(others), size=count, p=share / share.sum())]
        else:
            prompts = [others[i % len(others)] for i in range(count)]
        return [{"prompt": prompt, "response": self.sample(REFERENCE, prompt, rng)} for prompt in prompts]

    def write(self, path: str | Path) -> Path:
        """Write :meth:`generate` as one Parquet file."""
        return write_rows(self.generate(), path, _ROWS)

    def require_prompts(self, prompts: Iterable[str]) -> None:
        """Check that all prompts are the testbed's: no other prompt has a density or a gold reward.

        Raises:
            DataError: some of ``prompts`` are not; the message has their number.
        """
        prompts = list(prompts)
        foreign = sum(prompt not in self._topic_of for prompt in prompts)
        if foreign:
            raise DataError(
                f"{foreign} of {len(prompts)} prompts are not of the known mixture: their responses have no gold reward and no true ratio",
                hint="its gold reward judges only records written by dora_core.testbed, with the same `topics` setting",
            )

    def _row(self, row_id: str, prompt: str, rng: np.random.Generator) -> dict[str, Any]:
        count = self.config.responses_per_prompt
        draws = 1 if self.config.one_source_per_record else count
        drawn = rng.choice(len(self.sources), size=draws, p=list(self.shares_of(prompt).values()))
        sources = [self.sources[i] for i in drawn] * (count // draws)
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

    def _tilt(self, bias: dict[str, float], strength: float) -> dict[str, float]:
        """θ = θ_golden + strength·δ."""
        return {f: GOLD_TILT * GOLD[f] + strength * bias.get(f, 0.0) for f in FEATURES}

    def _chain(self, source: str) -> _Chain:
        if source not in self._chains:
            raise ConfigError(f"the testbed has no source {source!r}", hint=did_you_mean(source, self._chains))
        return self._chains[source]

    def _topic(self, prompt: str) -> int:
        if prompt not in self._topic_of:
            raise ConfigError("this prompt is not one of the testbed's", hint="use prompts from Testbed.generate() with the same topics")
        return self._topic_of[prompt]

    def _relative(self, prompt: str, symbols: list[int]) -> list[int]:
        """Renumber advice so that topic 0 is the prompt's: densities do not depend on the topic of the prompt."""
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
        """Split into opener, sentences, closer; sentences end with . or ! and are separated by one space."""
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
        phi["flattery"] += language.OPENERS[opener][2] + language.CLOSERS[closer][2]
        phi["repeat"] = float(sum(a == b for a, b in itertools.pairwise(symbols)))
        phi["length"], phi["excess"] = float(len(symbols)), float(max(0, len(symbols) - 4))
        return phi


class _Chain:
    """One source's distribution over (opener, sentence symbols, closer), symbols relative to the prompt's topic.

    The body's weight is length(K) · Π a(s_k) · exp(θ_repeat · [s_k = s_{k−1}]); ``B[m][s]`` sums the weights of all
    continuations by m sentences after s, which gives both the normaliser and exact sampling, sentence by sentence.
    """

    def __init__(self, tilt: dict[str, float], config: TestbedConfig):
        per_topic = len(language.ADVICE) * 3
        topic_free = len(language.REASONS) + len(language.FILLER) + len(language.FLATTERY)
        kinds = np.array([_kind(s, per_topic, config.topics) for s in range(per_topic * config.topics + topic_free)])
        base = np.array([_KIND_SHARES[k] for k in kinds]) / np.array([(kinds == k).sum() for k in kinds])
        self._log_sentence = np.log(base) + np.array([tilt[k] for k in kinds]) + tilt["length"]
        self._log_opener = _normalised([math.log(p) + tilt["flattery"] * f for _, p, f in language.OPENERS])
        self._log_closer = _normalised([math.log(p) + tilt["flattery"] * f for _, p, f in language.CLOSERS])
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


def materialize(config: TestbedConfig, golden_count: int, folder: Path) -> tuple[Path, Path]:
    """Write ``data.parquet`` (the mixture) and ``golden.parquet`` (``golden_count`` ≥ 1 reference responses) into ``folder`` once.

    The marker ``data.json`` records configuration, count and a digest of this code. While it matches, the files are not rewritten.
    """
    data, golden, marker = folder / "data.parquet", folder / "golden.parquet", folder / "data.json"
    code = hashlib.sha256(b"".join(Path(module).read_bytes() for module in (__file__, language.__file__, topics.__file__))).hexdigest()
    wanted = json.dumps({"testbed": config.model_dump(mode="json"), "golden": golden_count, "code": code}, sort_keys=True)
    if not (data.exists() and golden.exists() and marker.exists() and marker.read_text(encoding="utf-8") == wanted):
        marker.unlink(missing_ok=True)  # until it is written again, the two files may be of different versions
        testbed = Testbed(config)
        testbed.write(data)
        write_rows(testbed.generate_golden(golden_count), golden)
        temporary = marker.with_name(f".{marker.name}.tmp")
        temporary.write_text(wanted, encoding="utf-8")
        os.replace(temporary, marker)
    return data, golden


def write_rows(rows: list[dict[str, Any]], path: str | Path, schema: pa.Schema | None = None) -> Path:
    """Write rows as one Parquet file; its folder is created if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    return path


def _kind(symbol: int, per_topic: int, topics: int) -> str:
    """Return the feature of a (relative) sentence symbol."""
    if symbol < per_topic * topics:
        return "advice" if symbol < per_topic else "off_topic"
    rest = symbol - per_topic * topics
    return "reason" if rest < len(language.REASONS) else "filler" if rest < len(language.REASONS) + len(language.FILLER) else "flattery"


def _normalised(logits: list[float]) -> NDArray[np.float64]:
    log_probabilities: NDArray[np.float64] = np.array(logits) - np.logaddexp.reduce(logits)
    return log_probabilities


def _join(opener: str, body: Any, closer: str) -> str:
    return " ".join(piece for piece in (opener, *body, closer) if piece)


def _dot(weights: dict[str, float], phi: dict[str, float]) -> float:
    return sum(weight * phi[name] for name, weight in weights.items())
