"""Files of ``data.train`` that are named like test data. Seen at plan time, before any row is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import Finding, Rule

_EVALUATION = frozenset({"test", "tests", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "holdout", "heldout"})


class EvaluationFileInTrain(Rule):
    """The words of a file's name."""

    name = "evaluation_file_in_train"
    level = "refuse"
    hint = "move the input to data.eval, to evaluate on it and never train on it"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.named = list[str]()

    def opened(self, place: str, files: Sequence[str], gives_split: bool) -> None:
        if place.startswith("data.train") and not gives_split:
            self.named += [f"{place}: {name}" for name in files if _named_evaluation(name)]

    def findings(self) -> Iterator[Finding]:
        if self.named:
            shown = ", ".join(self.named[:3]) + (f" and {len(self.named) - 3} more" if len(self.named) > 3 else "")
            yield self.found(len(self.named), f"training data from files that are named like evaluation data: {shown}")


def _named_evaluation(name: str) -> bool:
    stem = PurePosixPath(name).name.partition(".")[0]
    words = {word for word in re.split(r"[^a-z]+", stem.casefold()) if word}
    return bool(words & _EVALUATION) and not words & {"train", "training"}


RULE = EvaluationFileInTrain
