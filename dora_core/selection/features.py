"""Frozen features of responses for the proxy: hashed n-grams and text statistics, which need no model, and those of a frozen policy.

Text statistics are those of the source classifier (``classifier/text_statistics.py``). Words and pairs of words are hashed into a few
hundred buckets with a sign each (Weinberger et al. 2009, arXiv 0902.2206): collisions cancel on average, and the proxy's fit stays
dense and small. Every column has mean 0 and variance 1 on the fitting rows, n-grams variance ¼: a ridge of one strength then shrinks the
numerous n-grams more.

Features of the policy (:class:`PolicyFeatures`): its log-probability of a response, whole and per token, and the mean of its last hidden
states over the response, given the prompt. Unlike n-grams they see how a response relates to its prompt. A wide hidden state is projected
by a fixed random matrix (Johnson & Lindenstrauss 1984), which keeps inner products, so that the proxy's fits stay small.

Left out: weights learned from the data (TF-IDF), which would make a feature depend on other rows.

Shape legend: N responses, D features, P pairs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dora_core.classifier.text_statistics import SurfaceBasis, surface_statistics

Floats = NDArray[np.float64]

BUCKETS = 256
ORDERS = (1.0, 0.5)  # weight of a word, and of a pair of words
NGRAM_SCALE = 0.5
LIMIT = 8.0  # standard deviations: one odd text must not decide a direction
_WORD = re.compile(r"\w+")


def hashed_ngrams(texts: Sequence[str], buckets: int = BUCKETS) -> Floats:
    """Signed counts of words and pairs of neighbouring words, lower case, (N, buckets). The same text has the same row in every process."""
    out = np.zeros((len(texts), buckets))
    for row, text in zip(out, texts, strict=True):
        words = _WORD.findall(text.lower())
        for order, weight in enumerate(ORDERS, 1):
            for gram in zip(*(words[k:] for k in range(order)), strict=False):
                code = zlib.crc32(" ".join(gram).encode())
                row[(code >> 1) % buckets] += weight * (1 - 2 * (code & 1))
    return out


POLICY_WIDTH = 128
"""Columns that are kept of a hidden state."""


def policy_vectors(representation_NV: Floats, tokens_N: NDArray[np.integer]) -> Floats:
    """Log-probability, log-probability per token, and the hidden state in at most :data:`POLICY_WIDTH` columns, (N, 2 + W).

    Args:
        representation_NV: of ``models.logprobs.represent_responses``.
        tokens_N: |y| ≥ 1.
    """
    logp_N, hidden_NH = representation_NV[:, 0], representation_NV[:, 1:]
    width = hidden_NH.shape[1]
    if width > POLICY_WIDTH:
        sketch_HW = np.random.default_rng([width, POLICY_WIDTH]).standard_normal((width, POLICY_WIDTH)) / POLICY_WIDTH**0.5
        hidden_NH = hidden_NH @ sketch_HW
    return np.column_stack([logp_N, logp_N / tokens_N, hidden_NH])


@dataclass(frozen=True)
class PolicyFeatures:
    """Vectors of :func:`policy_vectors` → features, by constants of the fitting rows."""

    mean_D: Floats
    scale_D: Floats

    @classmethod
    def fit(cls, vectors_ND: Floats) -> PolicyFeatures:
        """Constants from at least one response: variance 1 for the log-probabilities, ¼ for the numerous rest."""
        std_D = vectors_ND.std(axis=0)
        wanted_D = np.where(np.arange(len(std_D)) < 2, 1.0, NGRAM_SCALE)
        return cls(vectors_ND.mean(axis=0), np.divide(wanted_D, std_D, out=np.zeros_like(std_D), where=std_D > 1e-9))

    def __call__(self, vectors_ND: Floats) -> Floats:
        """Features (N, D), all finite."""
        features_ND: Floats = np.clip((vectors_ND - self.mean_D) * self.scale_D, -LIMIT, LIMIT)
        return features_ND


@dataclass(frozen=True)
class TextFeatures:
    """Texts → features, by constants of the fitting rows. Columns that are constant there are always 0."""

    basis: SurfaceBasis
    mean_B: Floats
    scale_B: Floats

    @classmethod
    def fit(cls, prompts: Sequence[str], responses: Sequence[str], buckets: int = BUCKETS) -> TextFeatures:
        """Constants from at least one response."""
        counts_NB = hashed_ngrams(responses, buckets)
        std_B = counts_NB.std(axis=0)
        scale_B = np.divide(NGRAM_SCALE, std_B, out=np.zeros_like(std_B), where=std_B > 1e-9)
        return cls(SurfaceBasis.fit(surface_statistics(prompts, responses)), counts_NB.mean(axis=0), scale_B)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Floats:
        """Features (N, D), all finite."""
        surface_NB = self.basis(surface_statistics(prompts, responses))
        ngrams_NB = (hashed_ngrams(responses, len(self.mean_B)) - self.mean_B) * self.scale_B
        features_ND: Floats = np.clip(np.concatenate([surface_NB, ngrams_NB], axis=1), -LIMIT, LIMIT)
        return features_ND
