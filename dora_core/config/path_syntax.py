"""Syntax of paths into a row: ``info.post``, ``summaries[].text``, ``annotations[0].result[0].value``, ``"a.b".c``, ``post|article``.

A key is any text without ``. [ ] | " '``; a key with one of those is quoted, in single or double quotes. ``[]`` visits every element of a
list, ``[0]`` the first one, ``[-1]`` the last one. ``a|b`` is the first of several paths whose value is not null.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field


class Each:
    """Step over all elements of a list."""

    __slots__ = ()


Step: TypeAlias = "str | int | Each"
"""A key, an index, or all elements."""

MAX_CHARS = 512
_TOKEN = re.compile(r"""(?P<key>[^.\[\]|"']+)|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|\[(?P<index>-?\d{1,9})?\]|(?P<mark>[.|])""")
_PLAIN_KEY = re.compile(r"""[^.\[\]|"'\s](?:[^.\[\]|"']*[^.\[\]|"'\s])?""")


def parse_path(text: str) -> tuple[tuple[Step, ...], ...]:
    """Alternatives of a path, each a sequence of steps that starts with a column.

    Raises:
        ValueError: the text is not a path; names the position.
    """
    alternatives: list[tuple[Step, ...]] = []
    steps: list[Step] = []
    position, key_wanted = 0, True
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a path: unexpected {text[position]!r} at character {position}; quote keys that hold it")
        if match["mark"]:
            if key_wanted:
                raise ValueError(f"{text!r} is not a path: a key is missing before {match['mark']!r} at character {position}")
            key_wanted = True
            if match["mark"] == "|":
                alternatives.append(tuple(steps))
                steps = []
        elif match[0].startswith("["):
            if not steps or key_wanted:
                raise ValueError(f"{text!r} is not a path: {match[0]} at character {position} follows no key")
            steps.append(Each() if match["index"] is None else int(match["index"]))
        else:
            if not key_wanted:
                raise ValueError(f"{text!r} is not a path: a '.' is missing at character {position}")
            plain = match["key"]
            steps.append(plain.strip() if plain is not None else next(g for g in (match["double"], match["single"]) if g is not None))
            if steps[-1] == "":
                raise ValueError(f"{text!r} is not a path: an empty key at character {position}")
            key_wanted = False
        position = match.end()
    if key_wanted:
        raise ValueError(f"{text!r} is not a path: it ends without a key")
    return (*alternatives, tuple(steps))


def in_flow(path: str) -> str:
    """A path as it is written between the braces of YAML, where ``answers[].text`` needs quotes."""
    if not re.search(r"[\[\]{},]|: | #", path) or re.fullmatch(r'"[^"]*"', path):
        return path
    return f"'{path}'" if '"' in path else f'"{path}"'


def quote_key(key: str) -> str:
    """A key as it is written in a path: quoted where it must be."""
    if _PLAIN_KEY.fullmatch(key):
        return key
    return f'"{key}"' if '"' not in key else f"'{key}'"


PathValue = TypeVar("PathValue", bound="str | Literal[False] | None")


def _check(text: PathValue) -> PathValue:
    if isinstance(text, str):
        if not 0 < len(text) <= MAX_CHARS:
            raise ValueError(f"a path has 1 to {MAX_CHARS} characters, this one {len(text)}")
        parse_path(text)
    return text


PathText = Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(_check)]
"""A path, checked when the configuration is read."""

MappedPath = Annotated[str | Literal[False] | None, AfterValidator(_check)]
"""A path; ``false`` switches the field off; null leaves it to the preset, or to the column of the field's own name."""
