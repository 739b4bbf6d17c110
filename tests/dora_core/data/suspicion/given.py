"""Records for the tests of suspicion rules, and the check that every rule passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dora_core.config.data import DataConfig
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.records import Record, Rules, Split, parse_canonical
from dora_core.data.suspicion import EXAMPLES, Example, Finding, Seen, rules

DATA = DataConfig.model_validate({"train": [{"path": "a"}], "decontaminate": ["b"]})
LONG = "Wipe the wool scarf with a damp cloth, then let it dry in the shade for two hours and turn it over"


def seen(
    number: int = 0,
    responses: tuple[str, ...] = ("Use cold water.", "No idea."),
    rewards: tuple[float | None, ...] = (1.0, 0.0),
    prompt: Any = "How do I clean it?",
    sources: tuple[str | None, ...] | None = None,
    split: Split = "train",
    renamed: bool = False,
    **fields: Any,
) -> Seen:
    """A record of the row ``number`` of a file."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    fields |= {"prompt": messages, "responses": list(responses), "rewards": list(rewards)}
    fields["sources"] = list(sources or ["human"] * len(responses))
    record = parse_canonical(CanonicalRow("listwise", fields), Rules())
    assert isinstance(record, Record), record
    return Seen(record, False, split, Example("a.jsonl", number), "data.train[0]", renamed)


def findings(rule: str, records: Iterable[Seen], references: Iterable[str] = ()) -> list[Finding]:
    """What one rule finds."""
    one = rules()[rule](DATA)
    for text in references:
        one.reference(text)
    for record in records:
        one.see(record)
    return list(one.findings())


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "text"} for role in roles]


def given(records: Iterable[Seen]) -> list[Seen]:
    """Records whose split the user gave."""
    return [one._replace(record=replace(one.record, split=one.split)) for one in records]


SOUND = [seen(i, prompt=f"How do I clean number {i} of these things here?", task="home") for i in range(60)]
SOUND += [seen(i, ("No", "A longer answer, but a worse one."), task="work") for i in range(60, 90)]


def assert_found(rule: str, suspicious: Sequence[Seen]) -> Finding:
    """The first finding of a rule: counted, with a next step and at most three rows."""
    (finding, *_) = findings(rule, given(suspicious))
    assert finding.rule == rule and finding.count >= 1 and finding.hint
    assert 1 <= len(finding.examples) <= EXAMPLES and all(at.file == "a.jsonl" for at in finding.examples)
    return finding


def assert_nothing(rule: str, sound: Sequence[Seen]) -> None:
    """No finding in these records, nor in sound data."""
    assert findings(rule, given(sound)) == []
    assert findings(rule, given(SOUND)) == []
