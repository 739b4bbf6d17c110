"""Surface statistics of a response: what can be counted in a text without a model of its language.

A few thousand responses teach an encoder little about repetition, length or layout, and n-grams never see that a sentence came
twice; yet these are what synthetic text is known by (Gehrmann et al. 2019, *GLTR*; Holtzman et al. 2020 on repetition; Singhal et
al. 2023 on length). Everything here is plain counting over words (``\\w+``), sentences (split at . ! ? 。！？… and line breaks) and
characters, so it needs no language; a script without spaces has one long "word" per clause, and its word statistics say less.

:class:`SurfaceBasis` turns the statistics into regressors. A source that tilts golden by exp(θ·x) has a log-ratio linear in the count
x; others saturate or set in past a threshold. So each statistic enters as x and log(1 + x), and lengths also as hinges
max(0, x − knot): a linear model can bend. Statistics are held within the range of the fitting rows: no extrapolation.

Legend: N rows, F statistics, B regressors, Q knots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SENTENCE = re.compile(r"[^.!?。！？…\n]+[.!?。！？…]*")
_WORD = re.compile(r"\w+")
_COUNTED = {  # characters and marks, counted
    "commas": re.compile(r"[,，、]"),
    "exclamations": re.compile(r"[!！]"),
    "questions": re.compile(r"[?？]"),
    "colons": re.compile(r"[:;：；]"),
    "quotes": re.compile("[\"'“”‘’«»]"),
    "brackets": re.compile(r"[()\[\]{}（）]"),
    "dashes": re.compile(r"[-–—]"),
    "digits": re.compile(r"\d"),
    "capitals": re.compile(r"[A-Z]"),
    "lines": re.compile(r"\n"),
    "list_items": re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s"),
    "markdown": re.compile(r"(?m)^#+ |\*\*|`"),
    "not_ascii": re.compile(r"[^\x00-\x7f]"),
}
LENGTHS = ("sentences", "words", "characters")  # these also get hinges; they come first
STATISTICS = (
    *LENGTHS,
    "words_per_sentence",
    "sentence_spread",  # standard deviation of words per sentence
    "adjacent_repeats",  # sentences equal to the one before
    "repeated_sentences",
    "repeated_words",
    "repeated_2grams",
    "repeated_3grams",
    "repeated_4grams",
    "distinct_words",  # share, "distinct-1"
    *_COUNTED,
    "prompt_words",  # words of the response that are in the prompt
    "prompt_share",  # the same as a share of the response's words
    "prompt_covered",  # share of the prompt's distinct words that the response uses
)
KNOTS = (0.25, 0.5, 0.75)  # quantiles of the fitting rows


def surface_statistics(prompts: Sequence[str], responses: Sequence[str]) -> Floats:
    """Statistics (N, F), all finite and ≥ 0, in the order of :data:`STATISTICS`. Linear in the text: about 60 µs for 40 words."""
    words = {prompt: frozenset(_WORD.findall(prompt.lower())) for prompt in dict.fromkeys(prompts)}
    rows = [_statistics(words[prompt], response) for prompt, response in zip(prompts, responses, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(STATISTICS))


def _statistics(prompt_words: frozenset[str], response: str) -> list[float]:
    lower = response.lower()
    sentences = [s for s in map(str.strip, _SENTENCE.findall(lower)) if s]
    words = _WORD.findall(lower)
    lengths = [len(_WORD.findall(s)) for s in sentences] or [0]
    shared = sum(w in prompt_words for w in words)
    return [
        len(sentences),
        len(words),
        len(response),
        float(np.mean(lengths)),
        float(np.std(lengths)),
        sum(a == b for a, b in pairwise(sentences)),
        len(sentences) - len(set(sentences)),
        *(_repeated(words, order) for order in (1, 2, 3, 4)),
        len(set(words)) / max(1, len(words)),
        *(len(pattern.findall(response)) for pattern in _COUNTED.values()),
        shared,
        shared / max(1, len(words)),
        len(prompt_words.intersection(words)) / max(1, len(prompt_words)),
    ]


def _repeated(words: list[str], order: int) -> int:
    """n-grams that occurred before in the same text."""
    grams = list(zip(*(words[i:] for i in range(order)), strict=False))
    return len(grams) - len(set(grams))


@dataclass(frozen=True)
class SurfaceBasis:
    """Statistics → standardised regressors, by constants of the fitting rows: ``low_F``, ``high_F``, ``knots_LQ``, ``mean_B``, ``std_B``.

    A regressor that is constant on the fitting rows has std 0 and is always 0.
    """

    low_F: Floats
    high_F: Floats
    knots_LQ: Floats
    mean_B: Floats
    std_B: Floats

    @classmethod
    def fit(cls, statistics_NF: Floats) -> SurfaceBasis:
        """Constants from at least one row."""
        low_F, high_F = statistics_NF.min(axis=0), statistics_NF.max(axis=0)
        knots_LQ = np.quantile(statistics_NF[:, : len(LENGTHS)], KNOTS, axis=0).T
        regressors = _regressors(statistics_NF, low_F, high_F, knots_LQ)
        std_B = regressors.std(axis=0)
        return cls(low_F, high_F, knots_LQ, regressors.mean(axis=0), np.where(std_B > 1e-9, std_B, 0.0))

    @property
    def width(self) -> int:
        return len(self.mean_B)

    def __call__(self, statistics_NF: Floats) -> Floats:
        """Regressors (N, B): mean 0 and variance 1 on the fitting rows."""
        centred = _regressors(statistics_NF, self.low_F, self.high_F, self.knots_LQ) - self.mean_B
        return np.divide(centred, self.std_B, out=np.zeros_like(centred), where=self.std_B > 0)


def _regressors(statistics_NF: Floats, low_F: Floats, high_F: Floats, knots_LQ: Floats) -> Floats:
    inside = np.clip(statistics_NF, low_F, high_F)
    hinges = np.maximum(0.0, inside[:, : len(LENGTHS), None] - knots_LQ)
    return np.concatenate([inside, np.log1p(inside), hinges.reshape(len(inside), -1)], axis=1)
