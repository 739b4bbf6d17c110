"""Sources that occur with one kind of prompt only: a classifier of sources then recognises the kind of prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen

FEWEST = 20
"""Records of a source below which one kind of prompt is no surprise."""


class OneTaskSource(Rule):
    """Tasks by source; null is a task too."""

    name = "one_task_source"
    hint = "calibration compares sources on the same kinds of prompts: give each source prompts of several kinds"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.tasks = set[str | None]()
        self.of_source: dict[str, set[str | None]] = defaultdict(set)
        self.counts: dict[str, int] = defaultdict(int)
        self.examples: dict[str, list[Example]] = defaultdict(list)

    def see(self, seen: Seen) -> None:
        if seen.golden:
            return
        task = seen.record.task
        self.tasks.add(task)
        for source in {source for source in seen.record.sources if source is not None}:
            self.of_source[source].add(task)
            self.counts[source] += 1
            if len(self.examples[source]) < EXAMPLES:
                self.examples[source].append(seen.at)

    def findings(self) -> Iterator[Finding]:
        alone = [name for name, tasks in sorted(self.of_source.items()) if len(tasks) == 1 and self.counts[name] >= FEWEST]
        if len(self.tasks) > 1 and alone:
            shown = [f"{name} ({next(iter(self.of_source[name])) or 'no task'}, {self.counts[name]} records)" for name in alone]
            names = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
            examples = [at for first in zip(*(self.examples[name] for name in alone), strict=False) for at in first]
            message = f"{len(alone)} of {len(self.of_source)} sources have one of the {len(self.tasks)} kinds of prompts only: {names}"
            yield self.found(sum(self.counts[name] for name in alone), message, list(dict.fromkeys(examples)))


RULE = OneTaskSource
