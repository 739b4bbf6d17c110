"""Records for the tests of suspicion rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dora_core.config.data import DataConfig
from dora_core.data.adapter.base import CanonicalRow
from dora_core.data.records import Record, Rules, Split, parse_canonical
from dora_core.data.suspicion import Example, Finding, Seen, rules

DATA = DataConfig.model_validate({"train": [{"path": "a"}], "decontaminate": ["b"]})


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
