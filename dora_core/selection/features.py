"""Frozen features of responses for the proxy: hashed n-grams and text statistics, which need no model.

Text statistics are those of the source classifier (``classifier/text_statistics.py``). Words and pairs of words are hashed into a few
hundred buckets with a sign each (Weinberger et al. 2009, arXiv 0902.2206): collisions cancel on average, and the proxy's fit stays
dense and small. Every column has mean 0 and variance 1 on the fitting rows, n-grams variance ¼: a ridge of one strength then shrinks the
numerous n-grams more.

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
