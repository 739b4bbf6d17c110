"""The same prompt in training and evaluation data: the evaluation then measures memory. Possible only where the user gives the split."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Level, Rule, Seen

_WHAT: dict[str, tuple[Level, str, str]] = {
    "drop_from_train": (
        "note",
        "are left out of training",
        "data.split_overlap: refuse stops instead, allow trains on them",
    ),
    "refuse": (
        "refuse",
        "would make evaluation measure memory",
        "write data.split_overlap: drop_from_train, take the prompts out of one split, or leave the split to the hash of the prompt",
    ),
    "allow": (
        "note",
        "are trained on, so that evaluation measures memory",
        "write data.split_overlap: drop_from_train, or leave the split to the hash of the prompt",
    ),
}
"""Level, consequence and next step by ``data.split_overlap``."""


class PromptInBothSplits(Rule):
    """Hashes of the prompts of both splits, 8 bytes per record; of evaluation records also their place."""

    name = "prompt_in_both_splits"
    hint = "take the prompts out of one of them, or leave the split to the hash of the prompt"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.train, self.held_out, self.rows, self.files = array("Q"), array("Q"), array("q"), array("q")
        self.names: dict[str, int] = {}
        self.given = bool(data.eval)

    def see(self, seen: Seen) -> None:
        self.given = self.given or seen.record.split is not None
        if seen.split == "train":
            self.train.append(seen.record.prompt_hash)
        elif not seen.golden:
            self.held_out.append(seen.record.prompt_hash)
            self.rows.append(seen.at.row)
            self.files.append(self.names.setdefault(seen.at.file, len(self.names)))

    def findings(self) -> Iterator[Finding]:
        if not self.given or not self.held_out or not self.train:
            return
        held_out, train = np.array(self.held_out, np.uint64), np.array(self.train, np.uint64)
        both = np.flatnonzero(np.isin(held_out, np.unique(train)))
        if both.size:
            trained = int(np.isin(train, np.unique(held_out)).sum())
            names = list(self.names)
            examples = [Example(names[self.files[i]], self.rows[i]) for i in both[:EXAMPLES].tolist()]
            level, consequence, self.hint = _WHAT[self.data.split_overlap]  # type: ignore[misc]
            message = (
                f"{both.size} of {len(held_out)} evaluation records have a prompt that training data has, too: "
                f"{trained} of {len(train)} training records {consequence}"
            )
            yield self.found(int(both.size), message, examples, level=level)


RULE = PromptInBothSplits
