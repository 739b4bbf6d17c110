"""Prompts and responses as messages: role maps, content parts, reasoning, tool calls, conversations written as text.

:class:`MessageReader` never drops a part of a message without a decision: it is used, refused with the line to write, or counted in
``notes``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NamedTuple

from dora_core.config.adapter import DEFAULT_ROLES, Messages
from dora_core.config.path_syntax import quote_key
from dora_core.data.adapter.numbers import describe, is_nan
from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure
from dora_core.data.adapter.transcripts import has_token, hh_transcript, is_plain, parse_template, template_in, without_end_tokens
from dora_core.data.column_looks import role_and_text
from dora_core.data.problems import Problem, Reason, problem

Message = dict[str, str]

REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "thinking", "reasoning_text"})
TOOL_KEYS = frozenset({"tool_calls", "function_call", "tools", "functions", "tool_plan"})
MEDIA_KEYS = frozenset({"images", "image", "image_url", "audio", "audios", "video", "videos", "files"})
PAYLOAD_KEYS = frozenset({"refusal"})
_CALL_ROLES = frozenset({"function_call", "tool_call", "tool_calls"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_REASONING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text"})
_TOOL_PARTS = frozenset({"tool_use", "tool_result", "tool_call", "function_call", "function"})
_INDEX = re.compile(r"\[\d+\]\Z")
_MESSAGE_LIST = re.compile(r"""\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")


class Reply(NamedTuple):
    """A response: the messages before it (empty for a plain text) and its text; None = not given, or refused with a problem."""

    lead: list[Message]
    text: str | None


class MessageReader:
    """Reads prompts and responses of one input by its ``messages`` settings."""

    def __init__(self, settings: Messages, notes: Counter[str]):
        self.settings, self.notes = settings, notes
        self._roles: dict[str, str] = {**DEFAULT_ROLES, **{name.strip().casefold(): role for name, role in settings.roles.items()}}
        self._keys: tuple[tuple[str, str], ...]
        if settings.role is None:
            self._keys = (("role", "content"), ("from", "value"))
        else:
            self._keys = ((settings.role, settings.content or "content"),)

    # ------------------------------------------------------------------------------------------------- two kinds of value

    def prompt(self, value: Any, field: str, problems: list[Problem], name: str = "prompt") -> list[Message]:
        """Messages of a prompt; an open turn of the assistant at its end is left out. Empty if there is a problem.

        Args:
            field: place of the value in the row, for messages.
            name: key of the configuration that maps it, for remedies.
        """
        if type(value) is str:
            turns = None if is_plain(value) else self._turns_in(value, field, problems, prompt=True)
            if turns is None:
                return [{"role": "user", "content": value}]
        elif isinstance(value, dict) and self._key_of(value) is not None:
            turns = self.turns(self._by_turn(value), field, problems)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            problems.append(
                problem(
                    field, Reason.WRONG_TYPE, f"is a list of texts, expected text or messages; name one of them: write `{name}: {field}[0]`"
                )
            )
            return []
        elif isinstance(value, list):
            turns = self.turns(value, field, problems)
        else:
            problems.append(
                problem(field, Reason.WRONG_TYPE, f"is {describe(value)}, expected text or messages{self._hint(value, field, name)}")
            )
            return []
        if len(turns) > 1 and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip() and len(turns[-1]) == 2:
            turns = turns[:-1]
        return turns

    def reply(self, value: Any, field: str, problems: list[Problem], name: str = "response") -> Reply:
        """A response: plain text, one message, or a conversation whose last message it is."""
        if type(value) is str:
            if is_plain(value):
                return Reply([], value)
            before = len(problems)
            turns = self._turns_in(value, field, problems, prompt=False)
            if turns is None:
                text = value
                if self.settings.templated == "parse":
                    text = without_end_tokens(value)
                return Reply([], text) if len(problems) == before else Reply([], None)
        elif value is None or is_nan(value):
            return Reply([], None)
        elif isinstance(value, dict) and self._key_of(value) is not None:
            turns = self.turns(self._by_turn(value), field, problems)
        elif isinstance(value, list) and not (value and isinstance(value[0], str)):
            if not value:
                problems.append(problem(field, Reason.EMPTY_RESPONSE, "no messages"))
                return Reply([], None)
            turns = self.turns(value, field, problems)
        else:
            kind, hint = describe(value), self._hint(value, field, name)
            if isinstance(value, list):
                path = _INDEX.sub("[]", field)
                each = f", or `{name}: {path}[]` where each is a response of its own" if name in ("chosen", "rejected") else ""
                kind, hint = "a list of texts", f": name one of them, write `{name}: {path}[0]`{each}"
            problems.append(problem(field, Reason.WRONG_TYPE, f"is {kind}, expected text{hint}"))
            return Reply([], None)
        if not turns:
            return Reply([], None)
        last = turns[-1]
        if last["role"] != "assistant":
            problems.append(
                problem(field, Reason.WRONG_TYPE, f"ends with a message of role {last['role']}, expected assistant: a response is its text")
            )
            return Reply([], None)
        if len(last) > 2:
            detail = "the response is a tool call, which a text policy cannot learn; leave the row out, or map the call as text"
            problems.append(problem(field, Reason.TOOL_CALL, detail))
            return Reply([], None)
        return Reply(turns[:-1], last["content"])

    # ------------------------------------------------------------------------------------------------- conversations as text

    def _turns_in(self, text: str, field: str, problems: list[Problem], *, prompt: bool) -> list[Message] | None:
        """Messages that a text holds; None if it is just text. An empty list if it was refused."""
        transcript = hh_transcript(text)
        if transcript is not None:
            found: list[Message] = [turn for turn in transcript if self._clean(turn["content"], field, problems, prompt=False)]
            return found if len(found) == len(transcript) else []
        structure = self._messages_in(text, field, problems)
        if structure is not None:
            return structure
        sign = template_in(text, prompt=prompt)
        if sign is None or (self.settings.templated == "text" and not has_token(text)):
            return None
        if self.settings.templated == "parse":
            turns = parse_template(text)
            if turns is not None:
                return self.turns(turns, field, problems)
            rest = text if prompt else without_end_tokens(text)
            if template_in(rest, prompt=prompt) is None:
                return None
        problems.append(problem(field, Reason.TEMPLATED_TEXT, self._templated(text, sign, prompt)))
        return []

    def _templated(self, text: str, sign: str, prompt: bool) -> str:
        """What is wrong with a templated text, and the lines that help with it."""
        ways = ["map the texts without a template"]
        if self.settings.templated != "parse" and (parse_template(text) is not None or not (prompt or has_token(without_end_tokens(text)))):
            ways.insert(0, "write `messages: {templated: parse}`")
        if self.settings.templated != "text" and not has_token(text):
            ways.append("write `messages: {templated: text}` to leave it as it is")
        return f"holds {sign}: it is already templated; {', or '.join(ways)}"

    def _messages_in(self, text: str, field: str, problems: list[Problem]) -> list[Message] | None:
        """Messages written as JSON or Python text; None if the text is something else, JSON of another kind included."""
        if not looks_structured(text):
            return None
        if not any(
            f"{quote}{role}{quote}" in text and f"{quote}{content}{quote}" in text for role, content in self._keys for quote in "\"'"
        ):
            return None
        try:
            value = parse_structure(text)
        except Unparsable as error:
            if _MESSAGE_LIST.match(text.lstrip()) is None:
                return None
            problems.append(problem(field, Reason.STRUCTURED_TEXT, f"looks like messages written as text, but {error}; write JSON"))
            return []
        items = [value] if isinstance(value, dict) else value
        if not items or not all(isinstance(item, dict) and self._key_of(item) is not None for item in items):
            return None
        return self.turns(items, field, problems)

    def plain(self, text: str, field: str, problems: list[Problem]) -> bool:
        """Whether a text of its own column holds no template; reports it otherwise."""
        return self._clean(text, field, problems, prompt=False)

    def _clean(self, text: str, field: str, problems: list[Problem], *, prompt: bool) -> bool:
        """Whether a message's text holds no template; reports it otherwise."""
        if is_plain(text):
            return True
        sign = "an HH transcript" if text.startswith(("\n\nHuman:", "\n\nAssistant:")) else template_in(text, prompt=prompt)
        if sign is None or (self.settings.templated == "text" and not has_token(text) and not text.startswith("\n\n")):
            return True
        detail = f"holds {sign}: it is already templated; map the texts without a template"
        problems.append(problem(field, Reason.TEMPLATED_TEXT, detail))
        return False

    # ------------------------------------------------------------------------------------------------- lists of messages

    def turns(self, items: list[Any], field: str, problems: list[Problem]) -> list[Message]:
        """Messages of a list of objects; empty if there is a problem."""
        before = len(problems)
        found = []
        roles, (role_key, content_key) = self._roles, self._keys[0]
        for i, item in enumerate(items):
            if type(item) is dict and len(item) == 2:
                role, content = item.get(role_key), item.get(content_key)
                if type(content) is str and type(role) is str and role in roles and is_plain(content):
                    found.append({"role": roles[role], "content": content})
                    continue
            message = self._turn(item, f"{field}[{i}]", problems)
            if message is not None:
                found.append(message)
        return found if len(problems) == before else []

    def _turn(self, item: Any, field: str, problems: list[Problem]) -> Message | None:
        if not isinstance(item, dict):
            problems.append(problem(field, Reason.WRONG_TYPE, f"is {describe(item)}, expected a message with role and content"))
            return None
        keys = self._key_of(item)
        if keys is None:
            names = " or ".join(f"{role}, {content}" for role, content in self._keys)
            detail = f"is {describe(item)}, expected a message with the keys {names}: write `messages: {{role: …, content: …}}`"
            problems.append(problem(field, Reason.WRONG_TYPE, detail))
            return None
        before = len(problems)
        role_key, content_key = keys
        role = self.role(item[role_key], f"{field}.{role_key}", problems)
        reasoning, called = "", False
        extra: dict[str, str] = {}
        for key, value in item.items():
            if key in keys or value is None or value == [] or value == "" or value == {}:
                continue
            if key in REASONING_KEYS:
                reasoning = self._reasoning(value, f"{field}.{key}", problems)
            elif key in TOOL_KEYS:
                called = True
                extra |= self._kept(key, value, f"{field}.{key}", problems)
            elif key in MEDIA_KEYS:
                problems.append(problem(f"{field}.{key}", Reason.MEDIA, f"holds {key}, which a text policy cannot see; leave the row out"))
            elif key in PAYLOAD_KEYS:
                problems.append(
                    problem(f"{field}.{key}", Reason.WRONG_TYPE, f"holds a text under {key!r} beside the content; map it as the content")
                )
            elif key == "tool_call_id" or (key == "name" and role == "tool"):
                if self.settings.tools == "keep":
                    extra[key] = str(value)
                else:
                    self.notes[f"message field {key}"] += 1
            else:
                self.notes[f"message field {key}"] += 1
        content = self._content(item.get(content_key), f"{field}.{content_key}", problems, called=called)
        if len(problems) > before or content is None:
            return None
        if reasoning and self.settings.reasoning == "keep":
            content = f"<think>\n{reasoning}\n</think>\n\n{content}"
        return {"role": role, "content": content, **extra}

    def _key_of(self, item: dict[Any, Any]) -> tuple[str, str] | None:
        """Keys of role and content in a message; Arrow fills keys that another row has with null."""
        for keys in self._keys:
            if item.get(keys[0]) is not None and keys[1] in item:
                return keys
        for keys in self._keys:
            if keys[0] in item and keys[1] in item:
                return keys
        return None

    def _by_turn(self, value: dict[Any, Any]) -> list[dict[Any, Any]]:
        """The messages of a struct: itself, or those of a struct of lists, as ``datasets`` gives a sequence of structs."""
        keys = self._key_of(value)
        lists = [] if keys is None else [value[key] for key in keys]
        if not lists or not all(isinstance(items, list) for items in lists) or len(lists[0]) != len(lists[1]):
            return [value]
        others = [key for key, items in value.items() if isinstance(items, list) and len(items) == len(lists[0])]
        return [{key: value[key][i] for key in others} for i in range(len(lists[0]))]

    def role(self, value: Any, field: str, problems: list[Problem]) -> str:
        if isinstance(value, str):
            role = self._roles.get(value) or self._roles.get(value.strip().casefold())
            if role is not None:
                return role
            shown = value[:40]
            if value.strip().casefold() in _CALL_ROLES:
                problems.append(
                    problem(field, Reason.TOOL_CALL, f"is {shown!a}: tool calls written as turns cannot be read; leave the row out")
                )
                return ""
            known = ", ".join(dict.fromkeys(self._roles))
            detail = f"is {shown!a}; write `messages: {{roles: {{{quote_key(shown)}: user}}}}` (or system, assistant, tool); known: {known}"
            problems.append(problem(field, Reason.UNKNOWN_ROLE, detail))
        else:
            problems.append(problem(field, Reason.UNKNOWN_ROLE, f"is {describe(value)}, expected the name of a role"))
        return ""

    def _reasoning(self, value: Any, field: str, problems: list[Problem]) -> str:
        text = value if isinstance(value, str) else None
        if text is not None and not text.strip():
            return ""
        if text is None:
            problems.append(problem(field, Reason.REASONING, f"is {describe(value)}, expected text"))
        elif self.settings.reasoning == "refuse":
            detail = (
                "holds reasoning; write `messages: {reasoning: drop}` to leave it out, or `keep` to put it in front in <think>…</think>"
            )
            problems.append(problem(field, Reason.REASONING, detail))
        elif self.settings.reasoning == "drop":
            self.notes["reasoning left out"] += 1
        elif self._clean(text, field, problems, prompt=False):
            return text
        return ""

    def _kept(self, key: str, value: Any, field: str, problems: list[Problem]) -> dict[str, str]:
        if self.settings.tools == "keep":
            if isinstance(value, str):
                return {key: value}
            try:
                return {key: json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)}
            except (TypeError, ValueError, RecursionError):
                problems.append(problem(field, Reason.TOOL_CALL, "cannot be written as JSON"))
                return {}
        detail = "holds a tool call or tools; write `messages: {tools: keep}` if the template can render them, or leave the row out"
        problems.append(problem(field, Reason.TOOL_CALL, detail))
        return {}

    def _content(self, value: Any, field: str, problems: list[Problem], *, called: bool) -> str | None:
        if isinstance(value, list) or (isinstance(value, dict) and value.get("type") is not None):
            value = self._joined(value if isinstance(value, list) else [value], field, problems)
            if value is None:
                return None
        if value is None and called:
            return ""
        if not isinstance(value, str):
            problems.append(problem(field, Reason.WRONG_TYPE, f"is {describe(value)}, expected text"))
            return None
        return value if self._clean(value, field, problems, prompt=False) else None

    def _joined(self, parts: list[Any], field: str, problems: list[Problem]) -> str | None:
        """Text parts, one behind the other; None, with a problem, if there is another part."""
        if self.settings.parts == "refuse":
            problems.append(problem(field, Reason.WRONG_TYPE, "is a list of parts, which `messages.parts: refuse` refuses"))
            return None
        texts, thoughts = [], 0
        before = len(problems)
        for i, part in enumerate(parts):
            place = f"{field}[{i}]"
            if isinstance(part, str):
                texts.append(part)
                continue
            if not isinstance(part, dict):
                problems.append(problem(place, Reason.WRONG_TYPE, f"is {describe(part)}, expected a part with type and text"))
                continue
            kind = part.get("type") if part.get("type") is not None else ("text" if isinstance(part.get("text"), str) else None)
            media = [key for key in part if key in MEDIA_KEYS and part[key] is not None]
            if kind in _TEXT_PARTS and isinstance(part.get("text"), str) and not media:
                texts.append(part["text"])
                for key, value in part.items():
                    if key not in ("type", "text") and value is not None and value != []:
                        self.notes[f"part field {key}"] += 1
            elif kind in _REASONING_PARTS:
                thought = self._reasoning(part.get("thinking") or part.get("text") or part.get("reasoning"), place, problems)
                if thought:
                    texts.append(f"<think>\n{thought}\n</think>\n\n")
                    thoughts += 1
            elif kind in _TOOL_PARTS:
                problems.append(problem(place, Reason.TOOL_CALL, f"is a part of the type {kind!a}; leave the row out"))
            else:
                name = media[0] if media else kind
                shown = ascii(name[:40]) if isinstance(name, str) else describe(name)
                problems.append(
                    problem(place, Reason.MEDIA, f"is a part of the type {shown}, which a text policy cannot see; leave the row out")
                )
        return "".join(texts) if len(problems) == before else None

    def _hint(self, value: Any, field: str, name: str) -> str:
        """The key of a struct that may have been meant, for the end of a message."""
        if not isinstance(value, dict):
            return ""
        dialect = role_and_text(value)
        if dialect is not None:
            return f" or a message: write `messages: {{role: {quote_key(dialect[0])}, content: {quote_key(dialect[1])}}}`"
        texts = [key for key, inner in value.items() if isinstance(inner, str | list) and isinstance(key, str)]
        only = [key for key in texts if isinstance(value[key], str)]
        chosen = only[0] if len(only) == 1 else texts[0] if len(texts) == 1 else None
        path = _INDEX.sub("[]", field)
        if chosen is not None:
            return f": map `{name}: {path}.{quote_key(chosen)}`"
        return f": map one of its keys, e.g. `{name}: {path}.{quote_key(str(next(iter(value))))}`" if value else ""
