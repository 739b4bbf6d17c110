"""Nearly equal texts that should differ: prompts of training and evaluation data, and responses of different sources.

Texts are compared by MinHash (Broder 1997) of their word triples, through ``datasketch``. Of large data a sample is compared: the
texts with the smallest hashes of their content, so that memory is bounded and the sample does not depend on the order.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen

THRESHOLD = 0.8
"""Jaccard similarity of word triples above which two texts are nearly equal."""
PERMUTATIONS = 64
SAMPLE = 4000
"""Texts of each kind and side that are compared at most."""
SHORTEST, LONGEST = 8, 3000
"""Words of a text that is compared, and characters of it that are read."""
_WORD = re.compile(r"\w+")


class _Text(NamedTuple):
    words: frozenset[str]
    group: str
    at: Example


class _Sample:
    """The texts with the smallest keys; a key is taken once."""

    def __init__(self, size: int):
        self._heap: list[tuple[int, int, str, str, Example]] = []
        self._keys, self._limit = set[int](), 1 << 64
        self.size, self.all = size, 0

    def wants(self, key: int) -> bool:
        """Whether a text of this key would be in the sample."""
        self.all += 1
        return key < self._limit and key not in self._keys

    def add(self, key: int, text: str, group: str, at: Example) -> None:
        entry = (-key, self.all, text[:LONGEST], group, at)
        self._keys.add(key)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        else:
            self._keys.discard(-heapq.heapreplace(self._heap, entry)[0])
        if len(self._heap) == self.size:
            self._limit = -self._heap[0][0]

    def texts(self) -> list[_Text]:
        """Texts of at least :data:`SHORTEST` words, in the order of their keys."""
        found = list[_Text]()
        for _, _, text, group, at in sorted(self._heap, reverse=True):
            words = _WORD.findall(text.casefold())
            if len(words) >= SHORTEST:
                found.append(_Text(frozenset(" ".join(words[i : i + 3]) for i in range(len(words) - 2)), group, at))
        return found


class NearDuplicates(Rule):
    """Sampled prompts by split, and sampled responses by source."""

    name = "near_duplicates"
    hint = "take near-duplicates out of the training data or keep them in one split; check the source of texts that two sources share"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.prompts = {"train": _Sample(SAMPLE), "eval": _Sample(SAMPLE)}
        self.responses = _Sample(SAMPLE)

    def see(self, seen: Seen) -> None:
        record = seen.record
        prompts, responses = self.prompts[seen.split], self.responses
        if prompts.wants(record.prompt_hash):
            prompts.add(record.prompt_hash, "\n".join(message["content"] for message in record.prompt), seen.split, seen.at)
        for response, source in zip(record.responses, record.sources, strict=True):
            if source is not None:
                key = crc32(response.encode(), crc32(source.encode()))
                if responses.wants(key):
                    responses.add(key, response, source, seen.at)

    def findings(self) -> Iterator[Finding]:
        train, held_out = (self.prompts[split].texts() for split in ("train", "eval"))
        pairs = _pairs([*train, *held_out]) if train and held_out else []
        exact = [pair for pair in pairs if pair[0].words != pair[1].words]  # equal prompts are the rule prompt_in_both_splits
        if exact:
            both = {pair[0].at if pair[0].group == "eval" else pair[1].at for pair in exact}
            message = f"{len(both)} evaluation prompts are nearly those of training data (word triples, similarity ≥ {THRESHOLD})"
            yield self.found(len(both), f"{message}{self._sampled(self.prompts['train'])}", sorted(both)[:EXAMPLES])
        responses = self.responses.texts()
        pairs = _pairs(responses) if len({text.group for text in responses}) > 1 else []
        if pairs:
            names = sorted({tuple(sorted((one.group, other.group))) for one, other in pairs})
            shown = ", ".join(f"{a} and {b}" for a, b in names[:3])
            examples = [at for pair in pairs[:EXAMPLES] for at in (pair[0].at, pair[1].at)]
            message = f"{len(pairs)} responses of two sources are nearly equal ({shown})"
            yield self.found(len(pairs), f"{message}{self._sampled(self.responses)}", list(dict.fromkeys(examples)))

    def _sampled(self, sample: _Sample) -> str:
        return f", in a sample of {sample.size} of {sample.all} texts" if sample.all > sample.size else ""


def _pairs(texts: list[_Text]) -> list[tuple[_Text, _Text]]:
    """Nearly equal texts of different groups; each text at most once, with the first other one."""
    from datasketch import MinHash, MinHashLSH

    index: Any = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    found = list[tuple[_Text, _Text]]()
    encoded = ([word.encode() for word in text.words] for text in texts)
    for number, sketch in enumerate(MinHash.generator(encoded, num_perm=PERMUTATIONS, hashfunc=crc32)):
        for other in sorted(index.query(sketch)):
            one, two = texts[other], texts[number]
            if one.group != two.group and len(one.words & two.words) >= THRESHOLD * len(one.words | two.words):
                found.append((one, two))
                break
        index.insert(number, sketch)
    return found


RULE = NearDuplicates
