"""Training records that share 13 words in a row with a file of ``data.decontaminate`` (as in GPT-3's paper, arXiv 2005.14165)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import CountingRule, Seen

WORDS = 13
SHORTEST = 6
"""Words of a text that counts as a whole if it has fewer than :data:`WORDS`."""
_WORD = re.compile(r"\w+")


class EvaluationOverlap(CountingRule):
    """Word sequences of the evaluation files, hashed to 8 bytes each."""

    name = "evaluation_overlap"
    level = "refuse"
    phrase = "of the training data share 13 words in a row with a file of data.decontaminate"
    hint = "take these rows out, or the files out of data.decontaminate"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.known = set[int]()

    def reference(self, text: str) -> None:
        self.known.update(_sequences(text))

    def see(self, seen: Seen) -> None:
        if self.known and seen.split == "train":
            super().see(seen)

    def holds(self, seen: Seen) -> bool:
        texts = (*(message["content"] for message in seen.record.prompt), *seen.record.responses)
        return any(sequence in self.known for text in texts for sequence in _sequences(text))


def _sequences(text: str) -> Iterator[int]:
    words = _WORD.findall(text.casefold())
    if len(words) < WORDS:
        if len(words) >= SHORTEST:
            yield hash(tuple(words))
        return
    for i in range(len(words) - WORDS + 1):
        yield hash(tuple(words[i : i + WORDS]))


RULE = EvaluationOverlap
