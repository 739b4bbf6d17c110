"""Lists and objects that an exporter (CSV, SQL, pandas) wrote as text: JSON, Python's ``repr``, or NumPy's print of it."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from typing import Any

_ADJACENT_STRINGS = re.compile(r"""['"]\s+[bru]?['"]""")
_NUMPY_BREAK = re.compile(r"\}\s*\n\s*\{")
_NUMPY_NUMBERS = re.compile(r"\[\s*[-+.\deE]+(?:\s+[-+.\deE]+)*\s*\]", re.ASCII)

MAX_CHARS = 5_000_000


class Unparsable(ValueError):
    """Text that begins like a list or an object and is neither JSON nor Python."""


def looks_structured(text: str) -> bool:
    """Whether a text begins and ends like a list or an object."""
    first, last = text.lstrip()[:1], text.rstrip()[-1:]
    return (first == "[" and last == "]") or (first == "{" and last == "}")


def parse_structure(text: str) -> Any:
    """The list or object that a text is.

    Raises:
        Unparsable: it is none, or its meaning is open (two texts side by side without a comma are one text in Python).
    """
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise Unparsable(f"is longer than {MAX_CHARS} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if _NUMPY_NUMBERS.fullmatch(text) and "," not in text:
        try:
            return [float(number) for number in text[1:-1].split()]
        except ValueError:
            raise Unparsable("is neither JSON nor Python") from None
    text = _NUMPY_BREAK.sub("}, {", text)  # a line break inside a text is written as \n, so this one separates two elements
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise Unparsable("is neither JSON nor Python") from None
    if _ADJACENT_STRINGS.search(text) and _has_adjacent_strings(text):
        raise Unparsable("holds texts without a comma between them (NumPy's print of a list)")
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, list | dict):
        return value
    raise Unparsable("is neither a list nor an object")


def _has_adjacent_strings(text: str) -> bool:
    previous = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(f"({text})").readline):
            if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT):
                continue
            if token.type == previous == tokenize.STRING:
                return True
            previous = token.type
    except (tokenize.TokenError, SyntaxError):
        return True
    return False
