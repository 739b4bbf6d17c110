"""The interface of suspicion rules, the search for them in this folder, and one pass of all of them over the records.

**A new rule** is one file in this folder that ends with ``RULE = TheRule``, a class; nothing else names it. A rule sees every record once,
holds bounded memory or a few bytes per record, and names at most :data:`EXAMPLES` rows by file and position, never a text.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from dora_core.config.data import DataConfig
from dora_core.data.records import Record, Split
from dora_core.errors import ConfigError, DataError, did_you_mean

EXAMPLES = 3
"""Rows named per finding."""

Level: TypeAlias = Literal["refuse", "note"]


class Example(NamedTuple):
    """A row: file, and position in it counted from 0."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


class Seen(NamedTuple):
    """A good record. ``renamed``: its id was there in an earlier input."""

    record: Record
    golden: bool
    split: Split
    at: Example
    place: str
    renamed: bool


@dataclass(frozen=True)
class Finding:
    """What a rule found: one sentence with its counts, the next step, and rows."""

    rule: str
    level: Level
    count: int
    message: str
    hint: str
    examples: tuple[Example, ...]

    def text(self) -> str:
        """The finding as one sentence, with its rows."""
        rows = f"; e.g. {', '.join(map(str, self.examples))} (file:row, from 0)" if self.examples else ""
        return f"{self.message}{rows}"


class Rule:
    """Base of a rule; one instance per run of ``ingest``, and one per plan, which only calls ``opened`` and ``findings``."""

    name: ClassVar[str]
    level: ClassVar[Level] = "note"
    hint: ClassVar[str]
    """Next step."""

    def __init__(self, data: DataConfig):
        self.data = data

    def opened(self, place: str, files: Sequence[str], gives_split: bool) -> None:
        """The files of an input. Called for every input before any row is read.

        Args:
            gives_split: rows of the input say their split.
        """

    def reference(self, text: str) -> None:
        """A text of ``data.decontaminate``. All are given before any row."""

    def see(self, seen: Seen) -> None:
        """A good record."""

    def findings(self) -> Iterator[Finding]:
        """What was found; nothing where nothing is suspicious."""
        return iter(())

    def found(self, count: int, message: str, examples: Sequence[Example] = (), *, level: Level | None = None) -> Finding:
        return Finding(self.name, level or self.level, count, message, self.hint, tuple(examples[:EXAMPLES]))


class CountingRule(Rule):
    """A rule about single records: counts those that :meth:`holds`, and names the first ones.

    Attributes:
        phrase: end of the sentence "3 of 40 records …".
    """

    phrase: ClassVar[str]

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.all = self.count = 0
        self.examples = list[Example]()

    def holds(self, seen: Seen) -> bool:
        raise NotImplementedError

    def see(self, seen: Seen) -> None:
        self.all += 1
        if self.holds(seen):
            self.count += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(seen.at)

    def findings(self) -> Iterator[Finding]:
        if self.count:
            yield self.found(self.count, f"{self.count} of {self.all} records {self.phrase}", self.examples)


@cache
def rules() -> dict[str, type[Rule]]:
    """All rules by name, in the order of their files."""
    found: dict[str, type[Rule]] = {}
    package = __name__.rpartition(".")[0]
    for info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda info: info.name):
        if info.name == "base" or info.name.startswith("_"):
            continue
        rule = getattr(importlib.import_module(f"{package}.{info.name}"), "RULE", None)
        if not (isinstance(rule, type) and issubclass(rule, Rule)):
            raise TypeError(f"{package}.{info.name} does not define RULE, and every file of this folder is a rule")
        if rule.name in found or rule.name != info.name:
            raise ValueError(f"{package}.{info.name}: the rule is called {rule.name!r}; give it the name of its file")
        found[rule.name] = rule
    return found


class Suspicion:
    """All rules over one run.

    Raises:
        ConfigError: ``data.accept`` names a rule that does not exist.
    """

    def __init__(self, data: DataConfig):
        known = rules()
        for name in data.accept:
            if name not in known:
                raise ConfigError(f"data.accept: there is no rule {name!r}", hint=did_you_mean(name, known))
        self._accepted = frozenset(data.accept)
        self._rules = [rule(data) for rule in known.values()]
        self._see: list[Callable[[Seen], None]] = [rule.see for rule in self._rules if type(rule).see is not Rule.see]

    def opened(self, place: str, files: Sequence[str], gives_split: bool) -> None:
        for rule in self._rules:
            rule.opened(place, files, gives_split)

    def reference(self, text: str) -> None:
        for rule in self._rules:
            rule.reference(text)

    def see(self, seen: Seen) -> None:
        for see in self._see:
            see(seen)

    def findings(self) -> list[Finding]:
        """All findings; one that ``data.accept`` names is a note."""
        found = [finding for rule in self._rules for finding in rule.findings()]
        return [replace(one, level="note") if one.rule in self._accepted else one for one in found]


def refuse(findings: Sequence[Finding]) -> None:
    """Refuse the data if a finding says so.

    Raises:
        DataError: with all findings of the level ``refuse``.
    """
    refused = [finding for finding in findings if finding.level == "refuse"]
    if refused:
        names = ", ".join(dict.fromkeys(finding.rule for finding in refused))
        raise DataError(
            "suspicious data: " + "; ".join(finding.text() for finding in refused),
            hint="; ".join(dict.fromkeys(finding.hint for finding in refused)) + f"; or accept it: data.accept: [{names}]",
        )
