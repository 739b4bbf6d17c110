"""Preference records: the canonical tables, and the one function that turns any input row into a record or into reasons.

:func:`parse_row` accepts every input form (pairwise, listwise, golden; prompts alone, sampled responses; strings or chat messages),
never raises for any content of a field, and reports *all* problems of a row. Everything that depends on a prompt's identity, the
train/eval split and the classifier's folds, is a hash of the prompt: a new row never moves an old one.

Left out: repairing rows (trimming, re-encoding, re-labelling). A bad row is quarantined with its reasons, never changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from dora_core.data.problems import Problem, Reason
from dora_core.data.response_turns import TURN

if TYPE_CHECKING:
    from dora_core.data.adapter.canonical import CanonicalRow

SCHEMA_VERSION = 3  # 2: task; 3: weight, extra, tools in messages
ROLES = ("system", "user", "assistant", "tool")
MAX_NAME_CHARS = 128

Form = Literal["pairwise", "listwise", "golden", "unpaired", "prompt", "sample"]
Split = Literal["train", "eval"]
RewardKind = Literal["reward", "rank", "preference", "label", "goal", "none"]
Message: TypeAlias = dict[str, str]
"""``{"role": …, "content": …}``; with ``extra`` where tools are kept: a JSON object of what a chat template reads beside them, such as
``tool_calls`` and ``tool_call_id``, in the first message also ``tools``."""

_PROMPT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT_WITH_TOOLS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))

RECORDS_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("prompt", _PROMPT),
        ("responses", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float64())),  # null = not measured; never a preference
        ("sources", pa.list_(pa.string())),  # null = unknown; such a response is scored but never fitted on
        # reward | rank | preference | label (one response, 1 = desirable, 0 = not) | goal (nearness to the reward asked for, best 0) | none
        ("reward_kind", pa.string()),
        ("task", pa.string()),  # kind of prompt, for results per task; null = not given
        ("split", pa.string()),  # train | eval
        ("prompt_hash", pa.uint64()),
        ("schema_version", pa.int32()),
        ("weight", pa.float64()),  # of the record, as the data gives it; null = not given
        ("extra", pa.string()),  # JSON object of the columns that are carried along; null = none
        ("label_probability", pa.float64()),  # that the order of the rewards is right, in [0, 1]; null = not given: as 1
    ]
)
GOLDEN_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("prompt", _PROMPT),
        ("response", pa.string()),
        ("prompt_hash", pa.uint64()),
        ("split", pa.string()),
        ("extra", pa.string()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("field", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)


def with_tools(schema: pa.Schema) -> pa.Schema:
    """A schema whose messages have the field ``extra``, for data in which tool calls are kept."""
    return schema.set(schema.get_field_index("prompt"), pa.field("prompt", _PROMPT_WITH_TOOLS))


def with_goals(schema: pa.Schema) -> pa.Schema:
    """A schema with the column ``goal``, for data in which prompts state one."""
    return schema.append(pa.field("goal", pa.string()))


@dataclass(frozen=True, slots=True)
class Record:
    """A valid row. ``rewards`` and ``sources`` have the length of ``responses``; golden rows and samples have one, prompts none."""

    record_id: str
    prompt: list[Message]
    responses: list[str]
    rewards: list[float | None]
    sources: list[str | None]
    reward_kind: RewardKind
    prompt_hash: int
    content: str  # canonical JSON of all but the id and the hash: the basis of fingerprints and of missing ids
    task: str | None = None
    split: Split | None = None  # given by the user; None: by the hash of the prompt
    weight: float | None = None
    extra: str | None = None
    label_probability: float | None = None
    goal: str | None = None  # text in front of the prompt, which ``prompt_hash`` leaves out: see :func:`with_goal`


@dataclass(frozen=True)
class Rules:
    """Limits of one input's rows.

    Apart from ``DataConfig`` because the stage ``prompts`` has no such section, and its limits lie beyond the bounds of that section.
    """

    max_text_bytes: int = 200_000
    max_responses: int = 16
    allowed_sources: frozenset[str] | None = None
    default_source: str | None = None


# ------------------------------------------------------------------------------------------------- identity of a prompt


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode  # built once: building takes microseconds


def canonical_json(value: Any) -> str:
    return _encode(value)


def hash_prompt(prompt: list[Message]) -> int:
    """uint64: the first 8 bytes, big-endian, of sha256 over the prompt's canonical JSON."""
    return _hash_text(canonical_json(prompt))


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


_SPREAD = 0x9E37_79B9_7F4A_7C15


def split_of(prompt_hash: np.ndarray, holdout_fraction: float) -> np.ndarray:
    """``"train"`` or ``"eval"`` per prompt. Shape: uint64 (n,) → str (n,)."""
    threshold = np.uint64(min(int(holdout_fraction * 2.0**64), 2**64 - 1))
    return np.where(_mix(prompt_hash, salt=0x5F1E_5A17) < threshold, "eval", "train")


def is_held_out(prompt_hash: int, holdout_fraction: float) -> bool:
    """:func:`split_of` of one prompt: whether it is in the split ``eval``."""
    z = prompt_hash ^ (0x5F1E_5A17 * _SPREAD % 2**64)
    z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB % 2**64
    return z ^ (z >> 31) < min(int(holdout_fraction * 2.0**64), 2**64 - 1)


def fold_of(prompt_hash: np.ndarray, folds: int) -> np.ndarray:
    """Cross-fitting fold in [0, folds), independent of :func:`split_of`. Shape: uint64 (n,) → int64 (n,)."""
    return (_mix(prompt_hash, salt=0xF01D_5A17) % np.uint64(folds)).astype(np.int64)


def shuffle_key(prompt_hash: np.ndarray, seed: int) -> np.ndarray:
    """Keys to sample prompts by: the smallest are a random sample, another one for another seed, and a new prompt moves no old one.
    Independent of :func:`split_of` and :func:`fold_of`. Shape: uint64 (n,) → uint64 (n,)."""
    return _mix(_mix(prompt_hash, salt=0x5EED_5A17) + np.uint64(seed), salt=0x0D0A_5A17)


def _mix(values: np.ndarray, *, salt: int) -> np.ndarray:
    """splitmix64 finaliser (Steele et al. 2014) of ``values`` xor a spread salt: independent hashes from one."""
    z = np.asarray(values, dtype=np.uint64) ^ np.uint64(salt * _SPREAD % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return z ^ (z >> np.uint64(31))


def is_golden_source(name: str | None, patterns: Iterable[str]) -> bool:
    """Whether a source is trusted: an exact name, or a prefix written with a trailing ``*``. Unknown (None) never is."""
    if name is None:
        return False
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)


def carried_text(extra: str | None, column: str) -> str | None:
    """Text of a carried column of one record, whose ``extra`` this is; None where it is absent or null."""
    value = None if extra is None else json.loads(extra).get(column)
    return None if value is None else str(value)


# ------------------------------------------------------------------------------------------------------- one row


def parse_row(row: Any, form: Form, rules: Rules, taken: Container[str] = ()) -> Record | list[Problem]:
    """Turn one input row into a record, or list all its problems. Never raises.

    Args:
        row: one value of the file; a dict is keyed by canonical field names: ``id``, ``prompt`` and, by form,
            ``chosen, rejected, chosen_source, rejected_source`` · ``responses, rewards, ranks, sources`` · ``response`` (golden, sample);
            all but golden also ``task``. Only a sample's response may be empty: a policy may answer with no text.
        form: pairwise labels become rewards 1 and 0, ranks become −rank.
        taken: ids of earlier rows. A row without an id gets a digest of its content as id.

    A response may be a whole conversation (HH, TRL's "implicit prompt"): its last message is the response, the messages
    before it must equal the prompt, or end with it, or, without a prompt, be the same for all responses of the row.
    """
    if not isinstance(row, dict):
        return [Problem("", Reason.WRONG_TYPE, f"row is {_kind(row)}, expected an object")]
    parser = _RowParser(rules, taken)
    record = parser.parse(row, form)
    return parser.problems or record


def parse_canonical(row: CanonicalRow, rules: Rules, taken: Container[str] = ()) -> Record | list[Problem]:
    """:func:`parse_row` for a row of an adapter: the prompt is messages, the responses are final texts. Never raises.

    Beside the fields of :func:`parse_row` a row may have ``split``, ``weight``, ``label_probability``, ``goal``, ``extra`` and ``tools``,
    and the form ``unpaired`` the fields ``response, label, source``.
    """
    parser = _RowParser(rules, taken, final=True)
    record = parser.parse(row.fields, row.form)
    return parser.problems or record


class _RowParser:
    """Collects problems while reading one row; the record is meaningful only if there are none."""

    def __init__(self, rules: Rules, taken: Container[str], final: bool = False):
        self.rules, self.taken, self.final = rules, taken, final
        self.problems: list[Problem] = []

    def parse(self, row: dict[str, Any], form: Form) -> Record:
        kind: RewardKind
        if form == "listwise":
            values = self._list(row.get("responses"), "responses", Reason.MISSING_RESPONSE)
            few = len(values) <= len(_RESPONSE_FIELDS)
            fields = _RESPONSE_FIELDS[: len(values)] if few else [f"responses[{i}]" for i in range(len(values))]
            rewards, kind = self._rewards(row, values)
            sources = self._sources(row, values)
            if isinstance(row.get("responses"), list) and len(values) < 2:
                self._add("responses", Reason.TOO_FEW_RESPONSES, f"{len(values)} given, at least 2 are needed")
            if len(values) > self.rules.max_responses:
                self._add("responses", Reason.TOO_MANY_RESPONSES, f"{len(values)} given, limit {self.rules.max_responses}")
        elif form == "pairwise":
            fields, rewards, kind = ["chosen", "rejected"], [1.0, 0.0], "preference"
            values = [row.get(name) for name in fields]
            sources = [self._source(row.get(f"{name}_source"), f"{name}_source") for name in fields]
        elif form == "unpaired":
            fields, values, kind = ["response"], [row.get("response")], "label"
            rewards, sources = [1.0 if row["label"] else 0.0], [self._source(row.get("source"), "source")]
        else:
            fields, kind = [] if form == "prompt" else ["response"], "none"
            values, rewards, sources = [row.get(name) for name in fields], [None for _ in fields], [None for _ in fields]

        given = None if row.get("prompt") is None else self._messages(row["prompt"], "prompt", last=("user", "system", "tool"))
        if given and row.get("tools") is not None:
            extra = json.loads(given[0].get("extra", "{}")) | {"tools": _json_or_text(row["tools"])}
            given[0] = given[0] | {"extra": canonical_json(extra)}
        replies = [self._reply(value, name, form) for value, name in zip(values, fields, strict=True)]
        if not self.final:  # an adapter has looked at its texts, and joined the turns of responses with this character
            for name in (name for name, (_, text) in zip(fields, replies, strict=True) if isinstance(text, str) and TURN in text):
                self._add(name, Reason.RESERVED_CHARACTER, f"holds U+{ord(TURN):04X}")
        prompt = self._prompt(given, [lead for lead, _ in replies if lead])
        responses = [text for _, text in replies]
        if form == "pairwise" and not self.problems and responses[0].strip() == responses[1].strip():
            same = "equals chosen" if responses[0] == responses[1] else "equals chosen but for white space at its ends"
            self._add("rejected", Reason.IDENTICAL_PAIR, same)

        record_id, task = self._identifier(row.get("id")), self._task(row.get("task"))
        # Canonical JSON of an invalid row may not exist (NaN), so a row without an id is looked up only when it is sound.
        # Rows that name no task keep the content they had before there were tasks.
        beside = {name: row[name] for name in ("split", "weight", "extra", "label_probability") if row.get(name) is not None}
        parts = [prompt, responses, rewards, sources, kind, *([task] if task else []), *([beside] if beside else [])]
        prompt_json = "" if self.problems else canonical_json(prompt)
        content = "" if self.problems else f"[{prompt_json},{canonical_json(parts[1:])[1:]}"  # the JSON of ``parts``, encoded once
        record_id = record_id or hashlib.sha256(content.encode()).hexdigest()[:32]
        if record_id in self.taken:
            self._add("id", Reason.DUPLICATE_ID, "an earlier row has this id, or this content where rows have no id")
        record = Record(record_id, prompt, responses, rewards, sources, kind, _hash_text(prompt_json), content, task, **beside)
        return with_goal(record, row["goal"]) if self.final and row.get("goal") is not None else record

    def _add(self, field: str, reason: Reason, detail: str) -> None:
        self.problems.append(Problem(field, reason, detail))

    def _list(self, value: Any, field: str, if_null: Reason = Reason.WRONG_TYPE) -> list[Any]:
        if isinstance(value, list):
            return value
        self._add(field, if_null if value is None else Reason.WRONG_TYPE, f"is {_kind(value)}, expected a list")
        return []

    def _text(self, value: Any, field: str, *, if_null: Reason, if_blank: Reason | None) -> str:
        if not isinstance(value, str):
            self._add(field, if_null if value is None else Reason.WRONG_TYPE, f"is {_kind(value)}, expected a string")
            return ""
        if if_blank is not None and not value.strip():
            self._add(field, if_blank, f"{len(value)} characters, all white space" if value else "no characters")
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError as error:
            self._add(field, Reason.LONE_SURROGATE, f"U+{ord(value[error.start]):04X} at character {error.start}")
            size = len(value)
        if size > self.rules.max_text_bytes:
            self._add(field, Reason.TEXT_TOO_LONG, f"{size} bytes, limit {self.rules.max_text_bytes}")
        return value

    def _identifier(self, value: Any) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
            return str(value)
        return self._text(value, "id", if_null=Reason.WRONG_TYPE, if_blank=Reason.WRONG_TYPE)

    def _messages(self, value: Any, field: str, *, last: Sequence[str]) -> list[Message]:
        """A string (one user turn, or an HH transcript) or a list of {role, content}; the final role must be in ``last``."""
        before = len(self.problems)
        if isinstance(value, str):
            value = _transcript(value) or [{"role": "user", "content": value}]
            if len(value) > 1 and "assistant" not in last and value[-1] == {"role": "assistant", "content": ""}:
                value = value[:-1]  # an HH prompt ends with an open "Assistant:" turn
        messages = []
        for i, item in enumerate(self._list(value, field)):
            if not isinstance(item, dict):
                self._add(f"{field}[{i}]", Reason.WRONG_TYPE, f"is {_kind(item)}, expected an object with role and content")
                continue
            role = item.get("role")
            if role not in ROLES:  # a tuple: an unhashable role is simply not in it
                self._add(f"{field}[{i}].role", Reason.WRONG_TYPE, f"is {_short(role)}, allowed: {', '.join(ROLES)}")
                role = ""
            content = self._text(item.get("content"), f"{field}[{i}].content", if_null=Reason.WRONG_TYPE, if_blank=None)
            message = {"role": role, "content": content}
            if self.final and len(item) > 2:
                extra = {key: item[key] if key in _PLAIN_EXTRA else _json_or_text(item[key]) for key in item if key not in message}
                message["extra"] = canonical_json(extra)
            messages.append(message)
        if messages and len(self.problems) == before and messages[-1]["role"] not in last:
            self._add(field, Reason.WRONG_TYPE, f"ends with a message of role {messages[-1]['role']}, expected {' or '.join(last)}")
        return messages

    def _reply(self, value: Any, field: str, form: Form) -> tuple[list[Message], str]:
        """The messages before the response (empty for a plain string) and the response itself."""
        if self.final:
            return [], self._text(value, field, if_null=Reason.MISSING_RESPONSE, if_blank=Reason.EMPTY_RESPONSE)
        if isinstance(value, list) or (form == "pairwise" and isinstance(value, str) and _transcript(value)):
            before = len(self.problems)
            messages = self._messages(value, field, last=["assistant"])
            if not messages:
                if len(self.problems) == before:
                    self._add(field, Reason.EMPTY_RESPONSE, "no messages")
                return [], ""
            if not messages[-1]["content"].strip() and len(self.problems) == before:
                self._add(field, Reason.EMPTY_RESPONSE, "the last message has no content")
            return messages[:-1], messages[-1]["content"]
        if_blank = None if form == "sample" else Reason.EMPTY_RESPONSE
        return [], self._text(value, field, if_null=Reason.MISSING_RESPONSE, if_blank=if_blank)

    def _prompt(self, given: list[Message] | None, leads: list[list[Message]]) -> list[Message]:
        if given is None and not leads:
            self._add("prompt", Reason.EMPTY_PROMPT, "is absent, and the responses are not conversations that contain it")
            return []
        if any(lead != leads[0] for lead in leads):
            self._add("prompt", Reason.PROMPT_MISMATCH, "the responses are conversations that differ before their last message")
        elif leads and given and leads[0][-len(given) :] != given:
            self._add("prompt", Reason.PROMPT_MISMATCH, "the responses are conversations that do not continue the prompt")
        prompt = leads[0] if leads else given or []
        if not any(p.field.startswith("prompt") for p in self.problems):
            size = sum(len(m["content"]) for m in prompt)
            if not any(m["content"].strip() for m in prompt):
                self._add("prompt", Reason.EMPTY_PROMPT, "no characters but white space")
            elif size > self.rules.max_text_bytes:
                self._add("prompt", Reason.TEXT_TOO_LONG, f"{size} characters in all messages, limit {self.rules.max_text_bytes} bytes")
        return prompt

    def _rewards(self, row: dict[str, Any], values: list[Any]) -> tuple[list[float | None], Literal["reward", "rank", "none"]]:
        kind: Literal["reward", "rank"] = "rank" if row.get("rewards") is None and row.get("ranks") is not None else "reward"
        sign = -1.0 if kind == "rank" else 1.0
        if row.get(f"{kind}s") is None:
            return [None] * len(values), "none"
        numbers = [
            v if type(v) is float and v - v == 0.0 else self._number(v, f"{kind}s[{i}]")  # infinities and NaN give NaN
            for i, v in enumerate(self._list(row[f"{kind}s"], f"{kind}s"))
        ]
        self._same_length(row[f"{kind}s"], row, f"{kind}s")
        rewards = [None if n is None else sign * n for n in numbers]
        return rewards, kind if any(r is not None for r in rewards) else "none"

    def _number(self, value: Any, field: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._add(field, Reason.WRONG_TYPE, f"is {_kind(value)}, expected a number or null")
        elif not -sys.float_info.max <= value <= sys.float_info.max:  # NaN compares false; an int may exceed any float
            self._add(field, Reason.NONFINITE_REWARD, "is NaN, infinite or beyond float64")
        else:
            return float(value)
        return None

    def _sources(self, row: dict[str, Any], values: list[Any]) -> list[str | None]:
        value = row.get("sources")
        if value is None:
            return [self.rules.default_source] * len(values)
        allowed = self.rules.allowed_sources
        sources = [
            v if type(v) is str and _is_name(v) and (allowed is None or v in allowed) else self._source(v, f"sources[{i}]")
            for i, v in enumerate(self._list(value, "sources"))
        ]
        self._same_length(value, row, "sources")
        return sources

    def _source(self, value: Any, field: str) -> str | None:
        if value is None:
            return self.rules.default_source
        if type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            self._add(field, Reason.WRONG_TYPE, f"is {_kind(value)}, expected a string or null")
        elif not _is_name(value):
            self._add(field, Reason.UNKNOWN_SOURCE, f"{_short(value)} is not a name of 1 to {MAX_NAME_CHARS} printable characters")
        elif self.rules.allowed_sources is not None and value not in self.rules.allowed_sources:
            self._add(field, Reason.UNKNOWN_SOURCE, f"{_short(value)} is not among data.sources")
        else:
            return value
        return None

    def _task(self, value: Any) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str) and _is_name(value):
            return value
        self._add("task", Reason.WRONG_TYPE, f"is {_short(value)}, expected a name of 1 to {MAX_NAME_CHARS} printable characters, or null")
        return None

    def _same_length(self, value: Any, row: dict[str, Any], field: str) -> None:
        responses = row.get("responses")
        if isinstance(value, list) and isinstance(responses, list) and len(value) != len(responses):
            self._add(field, Reason.LENGTH_MISMATCH, f"{len(value)} {field} for {len(responses)} responses")


def _transcript(text: str) -> list[Message] | None:
    r"""Messages of an Anthropic-HH transcript (``\n\nHuman: …\n\nAssistant: …``), None for any other text."""
    if not text.startswith("\n\nHuman:"):
        return None
    pieces = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = ["user" if name == "Human" else "assistant" for name in pieces[::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, pieces[1::2], strict=True)]


_RESPONSE_FIELDS = [f"responses[{i}]" for i in range(256)]
_PLAIN_EXTRA = frozenset({"tool_call_id", "name"})
"""Keys of a message that are names; the others that an adapter keeps are JSON text."""


def _json_or_text(text: str) -> Any:
    """The value of a JSON text, or the text itself: it comes from the data."""
    try:
        value = json.loads(text)
        canonical_json(value)
    except (ValueError, RecursionError):
        return text
    return value


@lru_cache(maxsize=4096)
def _is_name(value: str) -> bool:
    return bool(value.strip()) and value.isprintable() and len(value) <= MAX_NAME_CHARS


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    """A string, cut and escaped; only the type of any other value."""
    return ascii(value[:40]) if isinstance(value, str) else _kind(value)


def with_goal(record: Record, text: str) -> Record:
    """The record with a text in front of the first user message of its prompt, after a goal that is there already.

    ``prompt_hash`` stays that of the prompt without goals: records of one prompt belong to the same split and fold, whatever they ask for.
    """
    goal = text if record.goal is None else f"{record.goal} {text}"
    place = next((i for i, message in enumerate(record.prompt) if message["role"] == "user"), None)
    prompt = list(record.prompt)
    if place is None:
        prompt.append({"role": "user", "content": text})
    else:
        asked = record.prompt[place]["content"].removeprefix(f"{record.goal}\n\n") if record.goal else record.prompt[place]["content"]
        prompt[place] = record.prompt[place] | {"content": f"{goal}\n\n{asked}"}
    return replace(record, prompt=prompt, goal=goal, content=f"{record.content}\n{canonical_json(text)}")


# ------------------------------------------------------------------------------------------------------- tables


def records_table(records: Sequence[Record], holdout_fraction: float, schema: pa.Schema = RECORDS_SCHEMA) -> pa.Table:
    """Rows of ``records.parquet``, in the order given."""
    hashes = np.array([r.prompt_hash for r in records], dtype=np.uint64)
    own = "record_id", "prompt", "responses", "rewards", "sources", "reward_kind", "task", "weight", "extra"
    names = (*own, "label_probability", "goal")
    columns: dict[str, Any] = {name: [getattr(r, name) for r in records] for name in names}
    columns |= {
        "split": _splits(records, hashes, holdout_fraction),
        "prompt_hash": hashes,
        "schema_version": [SCHEMA_VERSION] * len(records),
    }
    return pa.table([pa.array(columns[f.name], type=f.type) for f in schema], schema=schema)


def _splits(records: Sequence[Record], hashes: np.ndarray, holdout_fraction: float) -> list[str]:
    """The split that the user gave, else the one of the hash."""
    return [r.split or by_hash for r, by_hash in zip(records, split_of(hashes, holdout_fraction).tolist(), strict=True)]


def golden_table(records: Sequence[Record], holdout_fraction: float, schema: pa.Schema = GOLDEN_SCHEMA) -> pa.Table:
    """Rows of ``golden.parquet``, in the order given."""
    hashes = np.array([r.prompt_hash for r in records], dtype=np.uint64)
    columns: dict[str, Any] = {
        "record_id": [r.record_id for r in records],
        "prompt": [r.prompt for r in records],
        "response": [r.responses[0] for r in records],
        "prompt_hash": hashes,
        "split": _splits(records, hashes, holdout_fraction),
        "extra": [r.extra for r in records],
        "goal": [r.goal for r in records],
    }
    return pa.table([pa.array(columns[f.name], type=f.type) for f in schema], schema=schema)
