"""Responses that begin with their prompt: the export wrote prompt and response into one text."""

from __future__ import annotations

from dora_core.data.suspicion.base import CountingRule, Seen

SHORTEST = 12
"""Characters of a prompt below which a response may begin with it by chance."""


class ResponseBeginsWithPrompt(CountingRule):
    """A response that begins with the last message of its prompt."""

    name = "response_begins_with_prompt"
    phrase = "have a response that begins with its prompt"
    hint = "map responses without the prompt, or write `columns: {prompt: false}` so that their common beginning is cut"

    def holds(self, seen: Seen) -> bool:
        prompt = seen.record.prompt[-1]["content"].strip()
        return len(prompt) >= SHORTEST and any(response.lstrip().startswith(prompt) for response in seen.record.responses)


RULE = ResponseBeginsWithPrompt
