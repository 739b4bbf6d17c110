"""Diversity of a policy's samples, which a collapsing generator loses first. Pure Python, no model.

Each kind of collapse has a measure: the same phrases everywhere (distinct-n, Li et al. 2016), the same text for every draw of a prompt
(self-BLEU, Zhu et al. 2018), the same text for every prompt (:attr:`Diversity.one_answer`).

Tokens are words and punctuation marks; in scripts written without spaces (Han, Kana, Thai, Lao, Burmese, Khmer) every character is one, so
that values are comparable between languages. Case is significant.

Left out: embeddings. Paraphrases count as different; the measures detect a collapse of wording, not of content.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ORDERS = 4  # BLEU-4
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+|[^\\w\\s]")

Tokens = list[str]


def tokens(text: str) -> Tokens:
    """Split into words, punctuation marks, and single characters of scripts without spaces."""
    return _TOKEN.findall(text)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all n-grams, in order; empty for fewer than n words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[Tokens], n: int) -> float | None:
    """Compute the share of distinct n-grams among all n-grams of all texts, in (0, 1]; None where no text has n tokens. It falls as
    texts are added: compare samples of one size."""
    counts = Counter(gram for text in texts for gram in ngrams(text, n))
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[Tokens]) -> float | None:
    """Average BLEU of each text against the others: in [0, 1], 1 where all are the same; None for fewer than two texts.

    BLEU (Papineni et al. 2002) with modified precisions up to order min(4, tokens), uniform weights, the closest reference's length, and
    one added to matches and total of orders ≥ 2 (Lin & Och 2004), so that a missing order does not make it 0. An empty text scores 1
    against another empty one. O(tokens): the largest count among the *others* follows from the two largest among all.
    """
    if len(texts) < 2:
        return None
    counts = [[Counter(ngrams(text, n)) for n in range(1, ORDERS + 1)] for text in texts]
    largest = [_two_largest([of_text[n] for of_text in counts]) for n in range(ORDERS)]
    return sum(_bleu(i, texts, counts[i], largest) for i in range(len(texts))) / len(texts)


def _two_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    largest: dict[tuple[str, ...], tuple[int, int]] = {}
    for of_text in counts:
        for gram, count in of_text.items():
            first, second = largest.get(gram, (0, 0))
            largest[gram] = (max(first, count), max(second, min(first, count)))
    return largest


def _bleu(
    index: int,
    texts: Sequence[Tokens],
    counts: Sequence[Counter[tuple[str, ...]]],
    largest: Sequence[dict[tuple[str, ...], tuple[int, int]]],
) -> float:
    """BLEU of one text against all others; ``largest`` holds the two largest counts of every n-gram over all texts, per order."""
    length = len(texts[index])
    reference = min((len(text) for i, text in enumerate(texts) if i != index), key=lambda other: (abs(other - length), other))
    if length == 0:
        return float(reference == 0)
    orders = min(ORDERS, length)
    logs = 0.0
    for n in range(orders):
        added = 1 if n else 0
        matches = 0
        for gram, count in counts[n].items():
            first, second = largest[n][gram]
            matches += min(count, second if count == first else first)
        if matches + added == 0:
            return 0.0
        logs += math.log((matches + added) / (length - n + added))
    return math.exp(min(0.0, 1.0 - reference / length) + logs / orders)


@dataclass(frozen=True)
class Diversity:
    """Measures of K samples each of P prompts.

    Attributes:
        prompts, samples: P and P·K.
        distinct_1, distinct_2: see :func:`distinct`; None where no response is long enough.
        self_bleu: mean over prompts of :func:`self_bleu`; None for K = 1.
        identical: share of samples, beyond the first of each prompt, that repeat an earlier one: 1 = one text per prompt. None for
            K = 1.
        one_answer: share of prompts with the same most common response; 1/P where all differ. None for P = 1.
        mean_length: tokens per response.
    """

    prompts: int
    samples: int
    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None
    identical: float | None
    one_answer: float | None
    mean_length: float

    def to_json(self) -> dict[str, float | int | None]:
        return asdict(self)


def diversity(responses: Sequence[Sequence[str]]) -> Diversity:
    """Compute all measures of a non-empty list with the samples of each prompt."""
    texts = [[tokens(response) for response in of_prompt] for of_prompt in responses]
    flat = [text for of_prompt in texts for text in of_prompt]
    bleus = [value for of_prompt in texts if (value := self_bleu(of_prompt)) is not None]
    repeats = sum(len(of_prompt) - len(set(of_prompt)) for of_prompt in responses)
    could = sum(len(of_prompt) - 1 for of_prompt in responses)
    modes = Counter(Counter(of_prompt).most_common(1)[0][0] for of_prompt in responses)
    return Diversity(
        prompts=len(responses),
        samples=len(flat),
        distinct_1=distinct(flat, 1),
        distinct_2=distinct(flat, 2),
        self_bleu=sum(bleus) / len(bleus) if bleus else None,
        identical=repeats / could if could else None,
        one_answer=modes.most_common(1)[0][1] / len(responses) if len(responses) > 1 else None,
        mean_length=sum(map(len, flat)) / len(flat),
    )
