"""Responses that are JSON objects or lists: the structure around a text was taken for the text."""

from __future__ import annotations

import json

from dora_core.data.suspicion.base import CountingRule, Seen


class JsonResponses(CountingRule):
    """A response that is a JSON object or list, where the prompt does not mention JSON."""

    name = "json_responses"
    phrase = "have a response that is a JSON object or list, and a prompt that does not mention JSON"
    hint = "map the text inside, e.g. `columns: {response: answer.text}`"

    def holds(self, seen: Seen) -> bool:
        found = any(map(_is_json, seen.record.responses))
        return found and not any("json" in message["content"].casefold() for message in seen.record.prompt)


def _is_json(text: str) -> bool:
    text = text.strip()
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


RULE = JsonResponses
