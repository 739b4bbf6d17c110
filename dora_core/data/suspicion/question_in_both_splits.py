"""The same question in training and evaluation data under another prompt: other system message, white space, Unicode form, or a longer
conversation that begins with it. Equal prompts are the rule ``prompt_in_both_splits``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from dora_core.config.data import DataConfig
from dora_core.data.questions import question_hash
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen


class QuestionInBothSplits(Rule):
    """Hashes of the questions of both splits, 8 bytes per record; of evaluation records also prompt and place."""

    name = "question_in_both_splits"
    hint = "write data.split_by: question, which keeps prompts with one question in one split; or give other evaluation data"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.train, self.trained = array("Q"), array("Q")
        self.held_out, self.prompts, self.rows, self.files = array("Q"), array("Q"), array("q"), array("q")
        self.names: dict[str, int] = {}

    def see(self, seen: Seen) -> None:
        question = question_hash(seen.record.prompt)
        if seen.split == "train":
            self.train.append(question)
            self.trained.append(seen.record.prompt_hash)
        elif not seen.golden:
            self.held_out.append(question)
            self.prompts.append(seen.record.prompt_hash)
            self.rows.append(seen.at.row)
            self.files.append(self.names.setdefault(seen.at.file, len(self.names)))

    def findings(self) -> Iterator[Finding]:
        if not self.held_out or not self.train:
            return
        held_out, prompts = np.array(self.held_out, np.uint64), np.array(self.prompts, np.uint64)
        both = np.isin(held_out, np.unique(np.array(self.train, np.uint64)))
        both &= ~np.isin(prompts, np.unique(np.array(self.trained, np.uint64)))
        if both.any():
            names, found = list(self.names), np.flatnonzero(both)
            examples = [Example(names[self.files[i]], self.rows[i]) for i in found[:EXAMPLES].tolist()]
            message = (
                f"{found.size} of {len(held_out)} held-out records ask a question that training data asks, too, in another form (system "
                "message, white space, Unicode form, or a longer conversation)"
            )
            yield self.found(int(found.size), message, examples)


RULE = QuestionInBothSplits
