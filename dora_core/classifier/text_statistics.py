"""Surface statistics of a response: counts that need no model of its language.

A few thousand responses teach an encoder little about repetition, length or layout, and n-grams never see that a sentence came
twice; yet these are known marks of synthetic text (Gehrmann et al. 2019, *GLTR*; Holtzman et al. 2020 on repetition; Singhal et
al. 2023 on length). All are plain counts over words (``\\w+``), sentences (split at . ! ? 。！？… and line breaks) and
characters, so it needs no language; a script without spaces has one long "word" per clause, and its word statistics are less informative.

:class:`SurfaceBasis` turns the statistics into regressors. A source that tilts golden by exp(θ·x) has a log-ratio linear in the count
x; others saturate or set in past a threshold. So each statistic enters as x and log(1 + x), and lengths also as hinges
max(0, x − knot): a linear model can bend. Statistics are held within the range of the fitting rows: no extrapolation.

Legend: N rows, F statistics, B regressors, Q knots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import eq

import numpy as np
from numpy.typing import NDArray

from dora_core.models.ragged import Ragged

Floats = NDArray[np.float64]

_SENTENCE = re.compile(r"[^.!?。！？…\n]+[.!?。！？…]*")
_WORD = re.compile(r"\w+")
_CHARACTERS = {  # single characters, counted
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
    "not_ascii": re.compile(r"[^\x00-\x7f]"),
}
_LIST_ITEM = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s")
_MARKDOWN = re.compile(r"(?m)^#+ |\*\*|`")
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
    *(name for name in _CHARACTERS if name != "not_ascii"),
    "list_items",
    "markdown",
    "not_ascii",
    "prompt_words",  # words of the response that are in the prompt
    "prompt_share",  # the same as a share of the response's words
    "prompt_covered",  # share of the prompt's distinct words that the response uses
)
KNOTS = (0.25, 0.5, 0.75)  # quantiles of the fitting rows


def surface_statistics(prompts: Sequence[str], responses: Sequence[str]) -> Floats:
    """Statistics (N, F), all finite and ≥ 0, in the order of :data:`STATISTICS`. Linear in the text."""
    prompt_words = {prompt: frozenset(_WORD.findall(prompt.lower())) for prompt in dict.fromkeys(prompts)}
    rows = [_row(prompt_words[prompt], response) for prompt, response in zip(prompts, responses, strict=True)]
    columns = dict(zip(_ROW, np.array([counts for _, counts in rows], dtype=np.float64).reshape(-1, len(_ROW)).T, strict=True))
    spoken = Ragged.of([lengths for lengths, _ in rows])  # words of each sentence
    row = np.repeat(np.arange(len(rows)), spoken.lengths)
    columns["words_per_sentence"] = mean = columns["words"] / np.maximum(columns["sentences"], 1)
    square = np.bincount(row, weights=(spoken.values - mean[row]) ** 2, minlength=len(rows))
    columns["sentence_spread"] = np.sqrt(square / np.maximum(columns["sentences"], 1))
    columns["distinct_words"] = (columns["words"] - columns["repeated_words"]) / np.maximum(columns["words"], 1)
    columns["prompt_share"] = columns["prompt_words"] / np.maximum(columns["words"], 1)
    columns |= _character_counts(responses)
    return np.stack([columns[name] for name in STATISTICS], axis=1)


_ROW = (
    *LENGTHS,
    *("adjacent_repeats", "repeated_sentences", "repeated_words", "repeated_2grams", "repeated_3grams", "repeated_4grams"),
    *("list_items", "markdown", "prompt_words", "prompt_covered"),
)


def _row(prompt_words: frozenset[str], response: str) -> tuple[list[int], list[float]]:
    """Words of each sentence, and the statistics named in ``_ROW``."""
    sentences = [s for s in map(str.strip, _SENTENCE.findall(response.lower())) if s]
    by_sentence = [_WORD.findall(s) for s in sentences]  # no mark between sentences is part of a word
    words = [*chain.from_iterable(by_sentence)]
    return list(map(len, by_sentence)), [
        len(sentences),
        len(words),
        len(response),
        sum(map(eq, sentences, sentences[1:])),
        len(sentences) - len(set(sentences)),
        *_repeated(words),
        len(_LIST_ITEM.findall(response)),
        len(_MARKDOWN.findall(response)),
        sum(map(prompt_words.__contains__, words)),
        len(prompt_words.intersection(words)) / max(1, len(prompt_words)),
    ]


def _repeated(words: list[str]) -> list[int]:
    """1-, 2-, 3- and 4-grams that occurred before in the same text."""
    counts = [len(words) - len(set(words)), 0, 0, 0]
    for order in (2, 3, 4):
        if counts[order - 2] == 0:
            break  # a repeated n-gram holds a repeated (n − 1)-gram
        counts[order - 1] = len(words) - order + 1 - len(set(zip(*(words[i:] for i in range(order)), strict=False)))
    return counts


def _character_counts(texts: Sequence[str]) -> dict[str, Floats]:
    """Counts of each of ``_CHARACTERS`` in each text; a pattern is applied once to every distinct character."""
    code = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    present = np.flatnonzero(np.bincount(code))
    kind = {name: np.array([pattern.match(chr(c)) is not None for c in present], dtype=bool) for name, pattern in _CHARACTERS.items()}
    of_interest = np.zeros(present.max(initial=0) + 1, dtype=bool)
    of_interest[present] = np.any(list(kind.values()), axis=0)
    where = np.flatnonzero(of_interest[code])
    row = np.repeat(np.arange(len(texts)), np.fromiter(map(len, texts), np.int64, len(texts)))[where]
    character = np.searchsorted(present, code[where])
    return {name: np.bincount(row[is_it[character]], minlength=len(texts)).astype(np.float64) for name, is_it in kind.items()}


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
    return np.concatenate([inside, np.log1p(inside), hinges.reshape(len(inside), len(LENGTHS) * len(KNOTS))], axis=1)
