"""Texts that may be a missing value written as text (``str(float("nan"))``), or a short answer: they are kept."""

from __future__ import annotations

from dora_core.data.suspicion.base import CountingRule, Seen

_MARKERS = frozenset({"nan", "NaN", "<NA>", "NaT", "None", "null", "NULL"})


class MissingValueTexts(CountingRule):
    """A response, or the only message of a prompt, that is such a word."""

    name = "missing_value_texts"
    phrase = "have a text that is a word for a missing value (nan, None, null, …), read as it is"
    hint = "if no text was there, export these rows with null, or take them out"

    def holds(self, seen: Seen) -> bool:
        prompt = seen.record.prompt
        texts = (*((prompt[0]["content"],) if len(prompt) == 1 else ()), *seen.record.responses)
        return any(len(text) < 12 and text.strip() in _MARKERS for text in texts)


RULE = MissingValueTexts
