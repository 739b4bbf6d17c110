"""Shape tree: messages with parents (OASST), or whole trees in one row. One record per user message with at least two ranked answers.

The prompt is the path from the root. Deleted messages (``deleted: true``, as OASST marks them) are no answers, and end their path.
Messages are spilled to disk first, because an answer may come before its question.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dora_core.config.adapter import Adapter, Tree
from dora_core.data.adapter.base import RowReader
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.labels import based_rank
from dora_core.data.adapter.numbers import NotANumber, describe, to_number
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.spill import spill_file
from dora_core.data.problems import Problem, Reason, problem
from dora_core.data.response_turns import TURN
from dora_core.data.withdrawn import is_withdrawn

MAX_DEPTH = 1000
_WITHDRAWN = "deleted answers, left out"
_TABLE = (
    "CREATE TABLE node (id TEXT PRIMARY "
    "KEY, seq INTEGER, parent TEXT, role "
    "TEXT, text TEXT, "
    "rank REAL, source "
    "TEXT, withdrawn INTEGER, beside TEXT) "
    "WITHOUT ROWID"
)


class TreeShape:
    """Reads all messages of an input, then yields a record per question."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        tree = adapter.tree or Tree()
        self.reader, self.notes, self.tree = RowReader(adapter, columns, notes), notes, tree
        fields = self.reader.fields
        nested = tree.replies is not None
        compiled = {
            name: CompiledPath(path) if nested else fields.compile(path)
            for name in ("id", "parent", "role", "text", "rank")
            if (path := getattr(tree, name)) is not None
        }
        self._id, self._parent, self._role = compiled["id"], compiled["parent"], compiled["role"]
        self._text, self._rank = compiled["text"], compiled["rank"]
        self._replies = None if tree.replies is None else CompiledPath(tree.replies)
        self._root = None if tree.root is None else fields.compile(tree.root)
        self._source = fields.path("source")

    def stream(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        """(row, problems) as they are met, then (row of the question, record); nested trees at once."""
        if self._replies is not None:
            for index, row in rows:
                yield from self._nested(index, row)
            return
        with spill_file() as spill:
            spill.execute(_TABLE)
            for index, row in rows:
                problems: list[Problem] = []
                node = self._node(row, problems)
                if node is not None and not problems:
                    added = spill.execute("INSERT OR IGNORE INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (node[0], index, *node[1:]))
                    if not added.rowcount:
                        problems.append(problem(self._id.text, Reason.BROKEN_TREE, "an earlier message has this id"))
                if problems:
                    yield index, problems
            spill.execute("CREATE INDEX by_parent ON node (parent, seq)")
            spill.execute("CREATE INDEX by_seq ON node (seq)")
            for seq, identifier, beside in spill.execute("SELECT seq, id, beside FROM node WHERE role = 'user' ORDER BY seq"):
                adapted = self._question(spill, identifier, beside)
                if adapted is not None:
                    yield seq, adapted

    # ------------------------------------------------------------------------------------------------- one message per row

    def _node(self, row: dict[str, Any], problems: list[Problem]) -> tuple[Any, ...] | None:
        identifier, parent = (self._key(path, row, problems) for path in (self._id, self._parent))
        if identifier is None and not problems:
            problems.append(problem(self._id.text, Reason.BROKEN_TREE, "is null, expected the id of the message"))
        role, text, rank = self._message(row, "", problems)
        source = self.reader.optional(self._source, row, problems) if self._source is not None else None
        if source is not None and not isinstance(source, str):
            problems.append(
                problem(self._source.text if self._source else "source", Reason.WRONG_TYPE, f"is {describe(source)}, expected text or null")
            )
        fields: dict[str, Any] = {}
        self.reader.beside(row, fields, problems)
        if problems:
            return None
        return identifier, parent, role, text, rank, source, int(is_withdrawn(row)), json.dumps(fields)

    def _key(self, path: CompiledPath, row: dict[str, Any], problems: list[Problem]) -> str | None:
        value = self.reader.optional(path, row, problems)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                problems.append(problem(path.text, Reason.LONE_SURROGATE, "holds half a UTF-16 pair"))
                return None
            return f"s{value}"
        if type(value) is int:
            return f"i{value}"
        problems.append(problem(path.text, Reason.WRONG_TYPE, f"is {describe(value)}, expected text or a whole number"))
        return None

    def _message(self, node: Any, place: str, problems: list[Problem]) -> tuple[str, str, float | None]:
        """Role, text and rank (1 = best) of a message."""
        at = f"{place}." if place else ""
        role, text, rank = (path.get(node) if isinstance(node, dict) else None for path in (self._role, self._text, self._rank))
        name = self.reader.messages.role(None if type(role) is Missing else role, f"{at}{self._role.text}", problems)
        if not isinstance(text, str):
            found = text.detail if type(text) is Missing else f"is {describe(text)}, expected text"
            problems.append(problem(f"{at}{self._text.text}", Reason.WRONG_TYPE, found))
            text = ""
        elif self.reader.messages.plain(text, f"{at}{self._text.text}", problems):
            try:
                text.encode()
            except UnicodeEncodeError:
                problems.append(problem(f"{at}{self._text.text}", Reason.LONE_SURROGATE, "holds half a UTF-16 pair"))
            if TURN in text:
                problems.append(problem(f"{at}{self._text.text}", Reason.RESERVED_CHARACTER, f"holds U+{ord(TURN):04X}"))
        number: float | None = None
        if rank is not None and type(rank) is not Missing:
            try:
                number = based_rank(to_number(rank), self.tree.rank_base, f"{at}{self._rank.text}", problems)
            except NotANumber as error:
                problems.append(problem(f"{at}{self._rank.text}", Reason.NOT_A_NUMBER, str(error)))
        return name, text, number

    def _question(self, spill: sqlite3.Connection, identifier: str, beside: str) -> CanonicalRow | list[Problem] | None:
        answers = spill.execute(
            "SELECT text, rank, source, withdrawn FROM node WHERE parent = ? AND role = 'assistant' ORDER BY seq", (identifier,)
        ).fetchall()
        withdrawn = sum(answer[3] for answer in answers)
        answers = [answer[:3] for answer in answers if not answer[3]]
        ranked = [answer for answer in answers if answer[1] is not None]
        if len(ranked) < 2:
            if answers:
                self.notes["questions with fewer than two ranked answers, left out"] += 1
            return None
        if len(ranked) < len(answers):
            self.notes["answers without a rank, left out"] += len(answers) - len(ranked)
        if withdrawn:
            self.notes[_WITHDRAWN] += withdrawn
        path: list[dict[str, str]] = []
        seen: set[str] = set()
        at: str | None = identifier
        while at is not None:
            node = spill.execute("SELECT parent, role, text, withdrawn FROM node WHERE id = ?", (at,)).fetchone()
            if node is None:
                detail = f"message {at[1:41]!r} above this one is not in the input, or was refused"
                return [problem(self._parent.text, Reason.BROKEN_TREE, detail)]
            if at in seen or len(seen) > MAX_DEPTH:
                return [problem(self._parent.text, Reason.BROKEN_TREE, "the parents form a circle, or are more than 1000")]
            if node[3]:
                self.notes["questions below a deleted message, left out"] += 1
                return None
            seen.add(at)
            path.append({"role": node[1], "content": node[2]})
            at = node[0]
        fields = {"id": identifier[1:], **json.loads(beside), "prompt": path[::-1]}
        return self._record(fields, ranked)

    def _record(self, fields: dict[str, Any], ranked: list[tuple[str, float, str | None]]) -> CanonicalRow:
        fields |= {"responses": [text for text, _, _ in ranked], "ranks": [rank for _, rank, _ in ranked]}
        if self._source is not None:
            fields["sources"] = [source for _, _, source in ranked]
        return CanonicalRow("listwise", fields)

    # ------------------------------------------------------------------------------------------------- whole trees

    def _nested(self, index: int, row: dict[str, Any]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        assert self._replies is not None
        problems: list[Problem] = []
        root = row if self._root is None else self._root.get(row)
        place = "" if self._root is None else self._root.text
        beside: dict[str, Any] = {}
        self.reader.beside(row, beside, problems)
        if not isinstance(root, dict):
            found = root.detail if type(root) is Missing else f"is {describe(root)}, expected a message"
            problems.append(problem(place or "row", Reason.WRONG_TYPE, found))
        found_records: list[CanonicalRow] = []
        waiting: list[tuple[Any, str, list[dict[str, str]]]] = [(root, place, [])] if not problems and not is_withdrawn(root) else []
        while waiting and not problems:
            node, at, path = waiting.pop()
            role, text, _ = self._message(node, at, problems)
            replies = self._replies.get(node)
            if type(replies) is Missing or replies is None:
                replies = []
            if not isinstance(replies, list) or len(path) > MAX_DEPTH:
                problems.append(
                    problem(
                        f"{at}.{self._replies.text}".lstrip("."),
                        Reason.BROKEN_TREE,
                        f"is {describe(replies)}, expected a list of messages",
                    )
                )
                break
            here = [*path, {"role": role, "content": text}]
            places = [f"{at}.{self._replies.text}[{i}]".lstrip(".") for i in range(len(replies))]
            if role == "user":
                read = [(*self._message(reply, where, problems), reply) for reply, where in zip(replies, places, strict=True)]
                answers = [(t, r, self._own_source(reply)) for name, t, r, reply in read if name == "assistant" and not is_withdrawn(reply)]
                if withdrawn := sum(name == "assistant" and is_withdrawn(reply) for name, _, _, reply in read):
                    self.notes[_WITHDRAWN] += withdrawn
                ranked = [(t, r, s) for t, r, s in answers if r is not None]
                if len(ranked) >= 2:
                    self.notes["answers without a rank, left out"] += len(answers) - len(ranked)
                    identifier = self._id.get(node)
                    named = {"id": identifier} if isinstance(identifier, str) or type(identifier) is int else {}
                    found_records.append(self._record({**beside, **named, "prompt": here}, ranked))
                elif answers:
                    self.notes["questions with fewer than two ranked answers, left out"] += 1
            below = [(reply, where, here) for reply, where in zip(replies, places, strict=True) if not is_withdrawn(reply)]
            waiting.extend(reversed(below))
        if problems:
            yield index, problems
        else:
            yield from ((index, record) for record in found_records)

    def _own_source(self, reply: Any) -> str | None:
        if self._source is None or not isinstance(reply, dict):
            return None
        value = self._source.get(reply)
        return value if isinstance(value, str) else None


SHAPE = RowShape(
    "tree",
    by_stream=TreeShape,
    always_read=frozenset({"deleted"}),
)
