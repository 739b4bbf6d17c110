"""The same prompt in training and evaluation data: the evaluation then measures memory. Possible only where the user gives the split."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen


class PromptInBothSplits(Rule):
    """Hashes of the prompts of both splits, 8 bytes per record; of evaluation records also their place."""

    name = "prompt_in_both_splits"
    hint = "take the prompts out of one of them, or leave the split to the hash of the prompt"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.train, self.held_out, self.rows, self.files = array("Q"), array("Q"), array("q"), array("q")
        self.names: dict[str, int] = {}
        self.given = False

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
        both = np.flatnonzero(np.isin(np.array(self.held_out, np.uint64), np.unique(np.array(self.train, np.uint64))))
        if both.size:
            names = list(self.names)
            examples = [Example(names[self.files[i]], self.rows[i]) for i in both[:EXAMPLES].tolist()]
            message = f"{both.size} of {len(self.held_out)} evaluation records have a prompt that training data has, too"
            yield self.found(int(both.size), message, examples)


RULE = PromptInBothSplits
