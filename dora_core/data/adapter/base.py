"""Parts of a row that every shape reads the same way: fields, prompt with its context, split, weight, carried columns, and the row that
results.

A shape (``shapes/pair.py``, …) is compiled once per input from an :class:`~dora_core.config.adapter.Adapter` and the columns, and then
called per row; it never raises for what a row holds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from dora_core.config.adapter import Adapter, roots_of
from dora_core.config.path_syntax import quote_key
from dora_core.data.adapter.fields import Fields
from dora_core.data.adapter.messages import Message, MessageReader, Reply
from dora_core.data.adapter.numbers import NotANumber, describe, is_nan, to_number
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure
from dora_core.data.problems import Problem, Reason, problem
from dora_core.data.response_turns import TURN, common_turns, join_turns
from dora_core.data.splits import split_named

MEDIA_COLUMNS = frozenset({"image", "images", "video", "videos", "audio", "audios", "pixel_values"})
TOOL_COLUMNS = frozenset({"tools", "functions"})
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>|<\|image(?:_\d+)?\|>")

_MEDIA_AT_END = re.compile(r"\A\s*<(?:image|video|audio)>|<(?:image|video|audio)>\s*\Z|<\|(?:image|video|audio)(?:_\d+|_pad)?\|>")
_BASE64 = re.compile(r"data:(?:image|audio|video|application)/[\w.+-]+;base64,[A-Za-z0-9+/=]{64}")

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=str).encode
_LETTER_OR_DIGIT = re.compile(r"\w")


class Given(NamedTuple):
    """Prompt of a row as its columns give it: ``messages`` is None if there is no prompt column; ``system`` is None if there is none."""

    messages: list[Message] | None
    system: str | None


class RowReader:
    """Prompt, context and everything beside the responses."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.fields = fields = Fields(adapter, columns)
        self.notes, self.settings = notes, adapter.messages
        self.messages = MessageReader(adapter.messages, notes)
        self._prompt = fields.path("prompt")
        context = adapter.context
        self._system, self._history, self._input, self._tools = (
            fields.compile(path) if isinstance(path, str) else None
            for path in (context.system, context.history, context.input, context.tools)
        )
        self._bare = self._system is None and self._history is None and self._input is None
        self._id, self._task, self._split, self._weight = (fields.path(name) for name in ("id", "task", "split", "weight"))
        self._label_probability = fields.path("label_probability")
        self._splits = {name.strip().casefold(): split for name, split in adapter.splits.items()}
        self._split_cache: dict[str, str | None] = {}
        self._carry = [fields.compile(path) for path in adapter.carry]
        read = {root for path in (context.tools,) if isinstance(path, str) for root in roots_of(path)}
        decided = set(adapter.ignore) | read
        self._parts = self._undecided_parts(adapter)
        self._media = [c for c in columns if c.casefold() in MEDIA_COLUMNS]
        self._refused = [c for c in self._media if c not in decided] + [
            c for c in columns if c.casefold() in TOOL_COLUMNS and c not in decided and c not in adapter.carry
        ]
        numbers = (self._weight, self._label_probability)
        self._beside = bool(
            self._refused or self._parts or self._carry or self._tools or self._id or self._task or self._split or any(numbers)
        )

    def _undecided_parts(self, adapter: Adapter) -> list[tuple[CompiledPath, bool]]:
        """Paths of tools and media beside the prompt in one struct (``input.tools`` of ``input.messages``); whether each is media."""
        steps = next(self._prompt.steps()) if self._prompt is not None else ()
        if len(steps) < 2 or not all(isinstance(step, str) for step in steps):
            return []
        parent = ".".join(quote_key(str(step)) for step in steps[:-1])
        named = {*adapter.ignore, *adapter.carry, parent, *((adapter.context.tools,) if adapter.context.tools else ())}
        if parent in {*adapter.ignore, *adapter.carry}:
            return []
        return [
            (CompiledPath(f"{parent}.{key}"), key in MEDIA_COLUMNS)
            for key in sorted(MEDIA_COLUMNS | TOOL_COLUMNS)
            if f"{parent}.{key}" not in named and key != steps[-1]
        ]

    # ------------------------------------------------------------------------------------------------- prompt

    def turns_in_lists(
        self, row: dict[str, Any], paths: Sequence[CompiledPath], problems: list[Problem]
    ) -> tuple[Given, list[Reply]] | None:
        """Prompt and responses of a row whose prompt is a list of one text per turn, as are its responses (Chatbot Arena's 55k battles).

        The lists may be written as text. None for any other row; a list beside responses of another length is a problem.
        """
        path = self._prompt
        value = None if path is None else path.get(row)
        if path is None or not (type(value) is list or (type(value) is str and value[:1] == "[" and value[-1:] == "]")):
            return None
        asked = _texts_of(value)
        if not asked:
            return None
        said = [_texts_of(one.get(row)) for one in paths]
        if any(texts is None or len(texts) != len(asked) for texts in said):
            if type(value) is str:
                detail = (
                    "is a list of texts written as text, and the responses are not lists of as many; "
                    f"name one of them: write `prompt: {path.text}[0]`, or leave the row out"
                )
                problems.append(problem(path.text, Reason.STRUCTURED_TEXT, detail))
                return Given([], None), []
            return None
        replies = []
        for texts in said:
            turns = [
                {"role": role, "content": text}
                for pair in zip(asked, texts or [], strict=True)
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            read = self.messages.turns(turns, path.text, problems)
            replies.append(Reply(read[:-1], read[-1]["content"]) if read else Reply([], None))
        history = self._earlier(row, problems)
        replies = [Reply([*history, *reply.lead], reply.text) for reply in replies]
        return Given(None, self._text(self._system, row, problems) if self._system is not None else None), replies

    def given(self, row: dict[str, Any], problems: list[Problem]) -> Given:
        """The prompt as the columns give it, history and input included."""
        path = self._prompt
        value = None if path is None else path.get(row)
        if type(value) is str and self._bare:
            return Given(self.messages.prompt(value, path.text if path else "prompt", problems), None)
        if type(value) is Missing:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return Given([], None)
        if is_nan(value):
            value = None
        system = self._text(self._system, row, problems) if self._system is not None else None
        extra = self._text(self._input, row, problems) if self._input is not None else None
        place = path.text if path is not None else "prompt"
        messages: list[Message] | None
        if extra is not None and (value is None or isinstance(value, str)):
            value = extra if value is None or not value.strip() else f"{value}\n\n{extra}"
        elif extra is not None and self._input is not None:
            problems.append(
                problem(self._input.text, Reason.WRONG_TYPE, "`context.input` is joined to a prompt of text, and the prompt is messages")
            )
        messages = None if value is None else self.messages.prompt(value, place, problems)
        history = self._earlier(row, problems)
        if history:
            messages = [*history, *(messages or [])]
        return Given(messages, system)

    def _text(self, path: CompiledPath, row: dict[str, Any], problems: list[Problem]) -> str | None:
        """A text of the context; None where it is null, absent or blank."""
        value = path.get(row)
        if value is None or is_nan(value) or (type(value) is Missing and value.absent):
            return None
        if type(value) is Missing:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return None
        if isinstance(value, list | dict):
            turns = self.messages.turns(value if isinstance(value, list) else [value], path.text, problems)
            if len(turns) == 1 and turns[0]["role"] == "system":
                return turns[0]["content"] or None
            if turns:
                problems.append(problem(path.text, Reason.WRONG_TYPE, "is messages, expected text or one message of the role system"))
            return None
        if not isinstance(value, str):
            problems.append(problem(path.text, Reason.WRONG_TYPE, f"is {describe(value)}, expected text"))
            return None
        if value.strip() in ("nan", "NaN", "<NA>", "NaT"):
            self.notes["texts of the context that stand for a missing value"] += 1
            return None
        return value if value.strip() else None

    def _earlier(self, row: dict[str, Any], problems: list[Problem]) -> list[Message]:
        if self._history is None:
            return []
        value = self._history.get(row)
        if value is None or is_nan(value) or (type(value) is Missing and value.absent):
            return []
        place = self._history.text
        if type(value) is Missing:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return []
        if isinstance(value, str):
            if not value.strip():
                return []
            if looks_structured(value):
                try:
                    value = parse_structure(value)
                except Unparsable as error:
                    problems.append(problem(place, Reason.STRUCTURED_TEXT, f"{error}, expected pairs [user, assistant] or messages"))
                    return []
        if isinstance(value, str):
            before = len(problems)
            turns = self.messages.prompt(value, place, problems, "context.history")
            if len(problems) == before and len(turns) < 2:
                detail = "is text without turns, expected pairs [user, assistant], messages, or a transcript; join it with `context.input`"
                problems.append(problem(place, Reason.WRONG_TYPE, detail))
            return turns
        if not isinstance(value, list):
            problems.append(problem(place, Reason.WRONG_TYPE, f"is {describe(value)}, expected pairs [user, assistant] or messages"))
            return []
        if value and isinstance(value[0], list | tuple):
            return self._pairs(value, place, problems)
        return self.messages.turns(value, place, problems)

    def _pairs(self, pairs: list[Any], place: str, problems: list[Problem]) -> list[Message]:
        turns = []
        for i, pair in enumerate(pairs):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                problems.append(
                    problem(f"{place}[{i}]", Reason.WRONG_TYPE, f"is {describe(pair)}, expected a pair of texts [user, assistant]")
                )
                continue
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return self.messages.turns(turns, place, problems)

    def joined(
        self, given: Given, replies: list[Reply], problems: list[Problem], names: Sequence[str]
    ) -> tuple[list[Message], list[str | None]]:
        """The one prompt of a row and its final responses.

        Conversations among the responses must share what precedes their last message, and agree with the prompt column: equal to it, or one
        the end or the beginning of the other; the longer one is the prompt. Plain responses without any prompt are cut at a turn marker.
        With ``learn_turns: all`` the prompt ends where the conversations part, and a final response may hold several turns
        (``dora_core/data/response_turns.py``).
        """
        texts = [reply.text for reply in replies]
        if any(text is not None and TURN in text for text in texts):
            problems.append(problem(names[0], Reason.RESERVED_CHARACTER, f"holds U+{ord(TURN):04X}"))
            return [], texts
        leads = [reply.lead for reply in replies if reply.lead]
        messages = given.messages
        if leads:
            lead = leads[0]
            if self.settings.learn_turns == "all" and None not in texts:
                parted = self._parted(given.messages or [], replies, problems, names[0])
                if parted is None:
                    return [], texts
                lead, texts = parted
            elif any(other != lead for other in leads):
                cut = self._cut(replies) if self.settings.differ == "cut" else None
                if cut is None:
                    detail = (
                        "the responses are conversations that differ before their last "
                        "message; write `messages: "
                        "{differ: cut}` to cut them at "
                        "the first difference, `messages: {learn_turns: all}` to learn all turns from there on, or leave the row out"
                    )
                    problems.append(problem(names[0], Reason.PROMPT_MISMATCH, detail))
                    return [], texts
                lead, texts = cut
                self.notes["conversations cut at the first difference"] += 1
            messages = self._longer(messages, lead, problems, names[0])
        elif messages is None:
            if self._prompt is not None or self._input is not None or len(replies) < 2 or any(text is None for text in texts):
                where = self._prompt.text if self._prompt is not None else "prompt"
                detail = "is null" if self._prompt is not None else "is not mapped: write `columns: {prompt: …}`"
                problems.append(problem(where, Reason.EMPTY_PROMPT, f"{detail}, and the responses are not conversations that contain it"))
                return [], texts
            boundary = prompt_boundary([text for text in texts if text is not None], self.settings.implicit)
            if boundary is None:
                detail = (
                    "there is no prompt column, and "
                    "the responses share no beginning "
                    "that ends at a turn marker: "
                    "map `columns: {prompt: …}`, "
                    "or write `messages: {implicit: longest}` to cut at the last line break or white space they share"
                )
                problems.append(problem(names[0], Reason.NO_PROMPT_BOUNDARY, detail))
                return [], texts
            first = texts[0] or ""
            messages = [{"role": "user", "content": first[:boundary].strip()}]
            texts = [(text or "")[boundary:].strip() for text in texts]
            self.notes["prompts cut from the common beginning of the responses"] += 1
        if given.system is not None and messages is not None:
            messages = self._with_system(given.system, messages, problems)
        if messages and any("<" in m["content"] and _MEDIA_AT_END.search(m["content"]) for m in messages):
            detail = "holds a placeholder such as <image>, and a text policy cannot see what it stands for; leave the row out"
            problems.append(problem(self._prompt.text if self._prompt else "prompt", Reason.MEDIA, detail))
        elif any(";base64," in text for text in (*(m["content"] for m in messages or []), *texts) if text) and any(
            _BASE64.search(text) for text in (*(m["content"] for m in messages or []), *texts) if text
        ):
            detail = "holds a file written as text (data:…;base64,…), which a text policy cannot see; leave the row out"
            problems.append(problem(self._prompt.text if self._prompt else "prompt", Reason.MEDIA, detail))
        elif self._media and messages and any(_PLACEHOLDER.search(m["content"]) for m in messages):
            detail = (
                f"refers to {', '.join(self._media)} (a placeholder such as <image>), which a text policy cannot see; leave the row out"
            )
            problems.append(problem(self._prompt.text if self._prompt else "prompt", Reason.MEDIA, detail))
        return messages or [], texts

    def _longer(self, given: list[Message] | None, lead: list[Message], problems: list[Problem], name: str) -> list[Message]:
        if not given or given == lead:
            return lead
        short, long = (given, lead) if len(given) <= len(lead) else (lead, given)
        if any(all(map(_same, short, part)) for part in (long[len(long) - len(short) :], long[: len(short)])):
            return long
        if given[-1]["role"] != "assistant" and lead[0]["role"] == "assistant":
            return [*given, *lead]  # turns after the prompt, shared by the responses
        problems.append(problem(name, Reason.PROMPT_MISMATCH, "the responses are conversations that do not continue the prompt"))
        return []

    def _with_system(self, system: str, messages: list[Message], problems: list[Problem]) -> list[Message]:
        if not messages:
            return messages
        if messages[0]["role"] != "system":
            if self.messages.plain(system, self._system.text if self._system else "system", problems):
                return [{"role": "system", "content": system}, *messages]
            return []
        if messages[0]["content"].strip() == system.strip():
            return messages
        detail = "differs from the system message of the conversation; keep one of them, e.g. `context: {system: false}`"
        problems.append(problem(self._system.text if self._system else "system", Reason.CONTEXT_CONFLICT, detail))
        return []

    def _cut(self, replies: list[Reply]) -> tuple[list[Message], list[str | None]] | None:
        """Prompt and responses cut at the first difference; None if that is not a turn of the assistant in all of them."""
        whole = [[*reply.lead, {"role": "assistant", "content": reply.text or ""}] for reply in replies]
        shared = 0
        while all(shared < len(turns) and turns[shared] == whole[0][shared] for turns in whole):
            shared += 1
        if shared == 0 or any(shared >= len(turns) or turns[shared]["role"] != "assistant" for turns in whole):
            return None
        return whole[0][:shared], [turns[shared]["content"] for turns in whole]

    def _parted(
        self, prompt: list[Message], replies: list[Reply], problems: list[Problem], name: str
    ) -> tuple[list[Message], list[str | None]] | None:
        """The turns that all conversations share, and of each the turns from there on as one text; None, with a problem, if there is no
        such place."""
        whole, given = [[*reply.lead, {"role": "assistant", "content": reply.text or ""}] for reply in replies], 0
        if prompt and all(turns[0]["role"] == "assistant" or _begins(turns, prompt) for turns in whole):
            whole = [[*prompt, *(turns if turns[0]["role"] == "assistant" else turns[len(prompt) :])] for turns in whole]
            given = len(prompt)
        shared = common_turns(whole, given)
        if not shared:
            detail = "the responses are conversations that differ before the assistant's first turn, so they have no prompt in common"
            problems.append(problem(name, Reason.PROMPT_MISMATCH, f"{detail}; leave the row out"))
            return None
        responses = [turns[shared:] for turns in whole]
        for turn in (turn for turns in responses if len(turns) > 1 for turn in turns):
            if len(turn) > 2:
                detail = "a response of several turns has a tool call or its result, which a text policy cannot learn; leave the row out"
                problems.append(problem(name, Reason.TOOL_CALL, detail))
            elif TURN in turn["content"]:
                problems.append(problem(name, Reason.RESERVED_CHARACTER, f"holds U+{ord(TURN):04X}"))
            elif turn["role"] == "assistant" and not turn["content"].strip():
                problems.append(problem(name, Reason.EMPTY_RESPONSE, "a turn of the assistant has no content"))
        if problems:
            return None
        several = sum(len(turns) > 1 for turns in responses)
        if several:
            self.notes["responses of several turns, of which all turns of the assistant are learned"] += several
        return whole[0][:shared], [join_turns(turns) for turns in responses]

    # ------------------------------------------------------------------------------------------------- beside the responses

    def beside(self, row: dict[str, Any], fields: dict[str, Any], problems: list[Problem]) -> None:
        """Put everything beside the responses (id, task, split, numbers, tools, carried columns) into ``fields``; report media and tools
        that are not decided."""
        if not self._beside:
            return
        beside = [(column, row.get(column), column.casefold() in MEDIA_COLUMNS) for column in self._refused]
        beside += [(path.text, path.get(row), is_media) for path, is_media in self._parts]
        for column, value, is_media in beside:
            if value is not None and type(value) is not Missing and value not in ([], "", {}, "[]"):
                if is_media:
                    detail = (
                        f"holds {column}, which a text policy cannot see; leave the "
                        "row out, or write `ignore: "
                        f"[{column}]` if "
                        "they do not matter"
                    )
                    problems.append(problem(column, Reason.MEDIA, detail))
                else:
                    detail = (
                        "holds tool definitions; write "
                        f"`context: {{tools: {column}}}` "
                        "and `messages: "
                        "{tools: keep}` "
                        "if the template can render "
                        f"them, or `ignore: [{column}]`"
                    )
                    problems.append(problem(column, Reason.TOOL_CALL, detail))
        if self._id is not None:
            fields["id"] = self._identifier(row, problems)
        if self._task is not None:
            task = self.optional(self._task, row, problems)
            if task is not None and not isinstance(task, str):
                detail = f"is {describe(task)}, expected a name; write `columns: {{task: false}}` if it is another thing"
                problems.append(problem(self._task.text, Reason.WRONG_TYPE, detail))
            else:
                fields["task"] = task
        if self._split is not None:
            fields["split"] = self._split_of(row, problems)
        if self._weight is not None:
            fields["weight"] = self.weight(row, problems)
        if self._label_probability is not None:
            fields["label_probability"] = self.label_probability(row, problems)
        if self._tools is not None:
            fields["tools"] = self._json(self.optional(self._tools, row, problems))
        if self._carry:
            fields["extra"] = self.extra_text({path.text: self.carried(path, row) for path in self._carry})

    def optional(self, path: CompiledPath, row: dict[str, Any], problems: list[Problem]) -> Any:
        """A value that may be absent, null or NaN; a path that meets another type is a problem."""
        value = path.get(row)
        if type(value) is not Missing:
            return None if is_nan(value) and path is not self._weight else value
        if not value.absent:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
        return None

    def _identifier(self, row: dict[str, Any], problems: list[Problem]) -> Any:
        assert self._id is not None
        value = self.optional(self._id, row, problems)
        if value is None or isinstance(value, str) or type(value) is int:
            return value
        if type(value) is float and abs(value) < 2**53 and value == int(value):
            return int(value)  # pandas writes whole numbers with a missing one among them as floats
        detail = f"is {describe(value)}, expected text or a whole number; write `columns: {{id: false}}` if it is not an id"
        problems.append(problem(self._id.text, Reason.WRONG_TYPE, detail))
        return None

    def _split_of(self, row: dict[str, Any], problems: list[Problem]) -> str | None:
        assert self._split is not None
        value = self.optional(self._split, row, problems)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            if value in self._split_cache:
                found = self._split_cache[value]
            else:
                found = split_named(value, self._splits)
                if len(self._split_cache) < 1000:
                    self._split_cache[value] = found
            if found is not None:
                return found
        shown = ascii(value[:40]) if isinstance(value, str) else describe(value)
        detail = f"is {shown}; write `splits: {{{shown}: train}}` (or eval), or `columns: {{split: false}}` if it is another thing"
        problems.append(problem(self._split.text, Reason.UNKNOWN_SPLIT, detail))
        return None

    def weight(self, row: dict[str, Any], problems: list[Problem]) -> float | None:
        """The record's weight, or None where it is not given."""
        assert self._weight is not None
        try:
            weight = to_number(self.optional(self._weight, row, problems))
        except NotANumber as error:
            problems.append(problem(self._weight.text, Reason.NOT_A_NUMBER, str(error)))
            return None
        if weight is not None and weight < 0:
            problems.append(problem(self._weight.text, Reason.NOT_A_NUMBER, "is negative, expected a weight of at least 0"))
            return None
        return weight

    def label_probability(self, row: dict[str, Any], problems: list[Problem]) -> float | None:
        """Probability that the row's label is right, or None where it is not given."""
        assert self._label_probability is not None
        place = self._label_probability
        try:
            probability = to_number(self.optional(place, row, problems))
        except NotANumber as error:
            problems.append(problem(place.text, Reason.NOT_A_NUMBER, str(error)))
            return None
        if probability is not None and not 0 <= probability <= 1:
            problems.append(problem(place.text, Reason.NOT_A_NUMBER, f"is {probability:g}, expected a probability from 0 to 1"))
            return None
        return probability

    def carried(self, path: CompiledPath, row: dict[str, Any]) -> Any:
        value = path.get(row)
        return None if type(value) is Missing else value

    def extra_text(self, values: dict[str, Any]) -> str:
        """Carried values as JSON text: NaN as null, what JSON has not (dates, bytes, infinities) as its text."""
        try:
            return _encode(values)
        except (ValueError, TypeError, RecursionError):
            return _encode({name: _encodable(value) for name, value in values.items()})

    def _json(self, value: Any) -> str | None:
        if value in (None, "", [], {}):
            return None
        return value if isinstance(value, str) else self.extra_text({"tools": value})[len('{"tools":') : -1]


class ResponseReader:
    """Responses and sources of the fields that hold one each."""

    def __init__(self, reader: RowReader):
        self.reader = reader

    def reply(self, path: CompiledPath, row: dict[str, Any], problems: list[Problem], name: str) -> Reply:
        """The response at a path; a path that leads nowhere is a problem, null is a missing response."""
        value = path.get(row)
        if type(value) is Missing:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return Reply([], None)
        return self.reader.messages.reply(value, path.text, problems, name)

    def source(self, paths: Sequence[CompiledPath | None], row: dict[str, Any], problems: list[Problem]) -> Any:
        """The value of the first path that is mapped; None if none is, or where it is null or absent."""
        for path in paths:
            if path is not None:
                return self.reader.optional(path, row, problems)
        return None


def _encodable(value: Any) -> Any:
    """A value that JSON has: numbers without a finite value replaced, one of another kind as its text."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None if is_nan(value) else str(value)
    try:
        if isinstance(value, list | tuple):
            return [_encodable(item) for item in value]
        if isinstance(value, dict):
            return {key if isinstance(key, str) else repr(key): _encodable(item) for key, item in value.items()}
        _encode(value)
    except (ValueError, TypeError, RecursionError):
        return repr(value)[:1000]
    return value


def _texts_of(value: Any) -> list[str] | None:
    """The texts of a list, also of one written as text; None for any other value."""
    if isinstance(value, str) and looks_structured(value) and value.lstrip()[:1] == "[":
        try:
            value = parse_structure(value)
        except Unparsable:
            return None
    return value if isinstance(value, list) and value and all(isinstance(text, str) for text in value) else None


def _same(one: Message, other: Message) -> bool:
    return one["role"] == other["role"] and (one["content"] == other["content"] or one["content"].strip() == other["content"].strip())


def _begins(turns: list[Message], prompt: list[Message]) -> bool:
    return len(turns) > len(prompt) and all(map(_same, turns, prompt))


_ANSWER = re.compile(
    r"\n\nAssistant:[ \t]*|(?:^|\n)\s*(?:A|Answer|Assistant|ASSISTANT|Bot|Response|Output|Summary|TL;DR|AI):[ \t]*\n?"
    r"|(?:^|\n)###\s*(?!Instruction|Input|Human|User|Question|Prompt|System)[^\n:]*(?::[ \t]*\n?|\n)|\sASSISTANT:[ \t]*"
)
_QUESTION = re.compile(r"(?:^|\n)\s*(?:###\s*)?(?:Q|Question|Human|User|USER|Instruction|Input|Prompt|System)\s*:|\sUSER:")


def _common_beginning(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)  # of sorted texts the first and the last share the least
    return low[: next((i for i, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), min(len(low), len(high)))]


def prompt_boundary(texts: Sequence[str], rule: Literal["marker", "longest"]) -> int | None:
    """Length of the prompt that texts begin with: their common beginning, up to its last turn marker.

    ``longest`` cuts a beginning without a marker at its last line break, else its last white space. Never inside a word; None if there is
    no such place, or if nothing would be left of a text.
    """
    prefix = _common_beginning(texts)
    answers, questions = ([m.end() for m in pattern.finditer(prefix)] for pattern in (_ANSWER, _QUESTION))
    end = answers[-1] if answers else None
    if end is not None and questions and questions[-1] > end:
        return None  # the texts differ inside a turn of the user
    if end is None and rule == "longest":
        cut = max(prefix.rfind("\n"), -1)
        end = cut + 1 if cut >= 0 and prefix[:cut].strip() else None
        if end is None:
            spaces = [match.end() for match in re.finditer(r"\s", prefix)]
            end = spaces[-1] if spaces else None
    if end is None or not _LETTER_OR_DIGIT.search(prefix[:end]) or any(not text[end:].strip() for text in texts):
        return None
    return end
