"""Incremental reading of a JSON document: one value of an array at a time, whatever the size of the document."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from dora_core.data.problems import Problem, Reason
from dora_core.errors import DataError

CHUNK_BYTES = 1 << 16
MOST_CHARS = 1 << 28
"""Longest value; a longer one is refused rather than held in memory."""
_NEAR_THE_END = 16
"""A token that is cut by the end of the buffer starts at most this many characters before it, unless it is a string."""


class Scanner:
    """Position in the text of one document.

    Args:
        stream: UTF-8 text.
        name: of the file, for messages.
    """

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape").decode
        self._text, self._at, self._ended = "", 0, False
        self._lines = 0  # line ends before the buffer
        self._flaws: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the text."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            self._at = at
            if at < len(text) or self._ended:
                return text[at : at + 1]
            self._fill()

    def take(self, allowed: str) -> str:
        """The next character, which must be one of ``allowed``.

        Raises:
            DataError: it is another one.
        """
        char = self.peek()
        if not char or char not in allowed:
            raise self._error(f"expected {' or '.join(allowed)}, found {repr(char) if char else 'the end of the file'}", self._at)
        self._at += 1
        return char

    def value(self) -> Any:
        """The next value, or a :class:`Problem` where it can be skipped but not used.

        Raises:
            DataError: the text is not JSON here, so that the rest of it cannot be read either.
        """
        self.peek()
        while True:
            self._flaws.clear()
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_THE_END
                if cut and not self._ended:
                    self._fill()
                    continue
                raise self._error(error.msg, error.pos) from None
            except RecursionError:
                raise self._error("values are nested too deeply", self._at) from None
            if end < len(self._text) - _NEAR_THE_END or self._ended:
                break
            self._fill()
        start, self._at = self._at, end
        try:
            self._text[start:end].encode()
        except UnicodeEncodeError:
            return Problem("", Reason.UNPARSABLE, "not UTF-8")
        return Problem("", Reason.UNPARSABLE, self._flaws[0]) if self._flaws else found

    def items(self) -> Iterator[Any]:
        """The values of an array, one by one."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller consumes each value before it continues."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value() if self.peek() == '"' else None
            if not isinstance(key, str):
                raise self._error("expected a key in double quotes", self._at)
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        """Check that nothing follows.

        Raises:
            DataError: the text goes on.
        """
        if self.peek():
            raise self._error("text follows the end of the document", self._at)

    def _fill(self) -> None:
        rest = self._text[self._at :]
        if len(rest) > MOST_CHARS:
            raise self._error(f"a value is longer than {MOST_CHARS} characters", self._at)
        self._lines += self._text.count("\n", 0, self._at)
        data = self._stream.read(max(CHUNK_BYTES, len(rest)))  # as much again: a long value is scanned a few times only
        self._ended = not data
        self._text, self._at = rest + self._decode(data, self._ended), 0

    def _error(self, cause: str, at: int) -> DataError:
        line = self._lines + self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        where = f"line {line}, column {column}" if self._lines or line > 1 else f"line {line}"
        return DataError(
            f"cannot read {self._name}: {where}: {cause}", hint="the file may be cut off or damaged; `jq . FILE` finds the first mistake"
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._flaws.append("an object has the same key twice")
        return found

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            self._flaws.append("an integer has too many digits")
            return 0
