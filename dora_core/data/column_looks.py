"""Look of a column: what it may hold, by its name or by its values, in words such as "a score" or "tools"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dora_core.data.adapter.transcripts import hh_transcript
from dora_core.data.splits import split_named

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("system prompt", r"(custom_|default_)?sys(tem)?([_-]?(prompt|message|msg|instruction)s?)?"),
        ("tools", r"tools?|functions?|tool_calls|available_tools|function_call"),
        (
            "media",
            r"(images?|imgs?|pictures?|photos?|screenshots?|videos?|audios?|pixel_values)([_-]?(url|uri|path|file|file_name|bytes|base64|b64|id)s?)?",
        ),
        ("reasoning", r"reasoning(_content)?|thinking|thoughts?|cot|chain_of_thought|(chosen|rejected)_(reasoning|thinking)"),
        (
            "context",
            r"history|context|input|conversations?|dialogu?e?|messages|documents?|passages?|article|background|previous_turns"
            r"|((db|sql|table|database)[_-]?)?schema|ddl|(sql|db|prompt|retrieved|rag)[_-]?contexts?|contexts|contents"
            r"|(chat|dialogu?e?|conversation|message)[_-]?(history|context)|previous[_-](messages|conversation|dialogu?e)|prior[_-]turns"
            r"|paragraphs?|premise|scenario|retrieved[_-](documents|docs|passages)|source[_-](text|document|code|sentence)|code[_-]snippets?",
        ),
        (
            "winner",
            r"winner([_-].*)?|winning|(is_)?tied?|(is_|was_)?(flipped|swapped|swap|reversed|inverted)|preferred?|preference([_-]strength|_score)?|choice|better|best|.*better_response.*|labels?|vote|verdict|selected",
        ),
        (
            "prompt",
            r"(question|instruction|quer(y|ie)|problem|task_prompt|user_(prompt|input|message|query)|prompt_text|persona)s?",
        ),
        (
            "further response",
            r"(chosen|rejected|responses?|answers?|outputs?|completions?|candidates?|generations?)[_-]?([2-9]|[12][0-9])|(rejected|chosen)_(0|1|alt|other|list|others|samples)|full_(chosen|rejected)"
            r"|(rejected|chosen|all|other|further|alternative)_(responses|answers|outputs|completions|candidates|generations)"
            r"|(all_rejected|hard_negative|negative)(_responses)?s?|negatives",
        ),
        (
            "beginning of the responses",
            r"(initial|partial|previous|given|prefix)[_-]?(reason(ing)?[_-]?)?(steps?|responses?|answers?|solutions?|completions?)|((response|answer|assistant|completion)[_-])?(prefix|prefill)",
        ),
        ("split", r"split|subset_split|partition|fold|is_test|is_eval|datasplit"),
        ("weight", r"(sample_|example_|loss_)?weights?|importance"),
        ("margin", r"margins?|score_(diff|gap|margin)|reward_margin"),
        ("rank", r"(.*[_-])?rank(s|ing|ings)?([_-].*)?"),
        (
            "score",
            r"(.*[_-])?(scores?|ratings?|rewards?|rm_scores?|confidence|grades?|points|upvotes|stars|annotations?)([_-](a|b|0|1|2|chosen|rejected))?",
        ),
        (
            "source",
            r"(sources?|((chosen|rejected|a|b|response(_[a-z0-9])?)[_-])?(models?|source|policy|generator|author)([_-](name|[ab012]))?)",
        ),
    )
)
_SYSTEM_TEXT = re.compile(r"\s*(you are (a|an|the) |you're an? |act as |<<SYS>>)", re.IGNORECASE)
_WINNER_VALUES = frozenset(
    {"model_a", "model_b", "a", "b", "tie", "left", "right", "both_bad", "chosen", "rejected", "response_a", "response_b"}
)


def kind_by_name(column: str) -> str | None:
    """What a column holds by its name; None for a name that says nothing."""
    if column != "prompt" and column.strip().casefold() in ("prompt", "prompts"):
        return "prompt"
    return next((kind for kind, pattern in _NAMES if pattern.fullmatch(column)), None)


def kind_by_values(given: Sequence[Any]) -> str | None:
    """What a column holds by its values that are not empty; None for values that say nothing."""
    texts = [value for value in given if isinstance(value, str)]
    if len(texts) == len(given):
        forms = {text.strip().casefold() for text in texts}
        if "tie" in forms and len(forms) <= 6:
            return "winner"
        if forms <= _WINNER_VALUES and forms & {"model_a", "model_b", "left", "right", "tie", "response_a", "response_b"}:
            return "winner"
        if (
            len(forms) <= 6
            and all(len(form) < 16 and split_named(form, {}) for form in forms)
            and forms & {"train", "test", "validation", "val", "dev", "eval"}
        ):
            return "split"
        if all(_SYSTEM_TEXT.match(text) for text in texts):
            return "system prompt"
        if all(hh_transcript(text) is not None for text in texts):
            return "messages"
    if all(isinstance(value, list) and value and all(isinstance(item, dict) for item in value) for value in given):
        keys = {key for value in given for item in value for key in item}
        if {"role", "content"} <= keys or {"from", "value"} <= keys:
            return "messages"
        if "function" in keys or {"name", "parameters"} <= keys:
            return "tools"
    if all(isinstance(value, dict) and {"bytes", "path"} <= value.keys() for value in given) or any(
        isinstance(value, bytes) for value in given
    ):
        return "media"
    return None


def role_and_text(value: Any) -> tuple[str, str] | None:
    """Keys of role and text of a message in a dialect of its own (``speaker`` and ``text``, ``role`` and ``parts``); None for anything
    else."""
    item = value[0] if isinstance(value, list) and value else value
    if not isinstance(item, dict) or {"role", "content"} <= item.keys() or {"from", "value"} <= item.keys():
        return None
    role = next((key for key in ("role", "speaker", "author", "from", "sender") if isinstance(item.get(key), str)), None)
    text = next(
        (key for key in ("text", "content", "parts", "value", "message", "utterance") if isinstance(item.get(key), str | list)), None
    )
    return None if role is None or text is None else (role, text)
