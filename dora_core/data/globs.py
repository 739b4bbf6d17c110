"""Glob patterns of paths: ``*`` and ``?`` within a name, ``**`` over folders, ``[..]``, and braces ``{a,b}``."""

from __future__ import annotations

import re

_MAGIC = re.compile(r"[*?\[{]")


def is_glob(path: str) -> bool:
    """Whether a path holds a character of a pattern."""
    return _MAGIC.search(path) is not None


def fixed_folder(pattern: str) -> str:
    """The folders in front of the first name with a pattern: ``a/b`` for ``a/b/*.jsonl``."""
    names = pattern.split("/")
    first = next((i for i, name in enumerate(names) if is_glob(name)), len(names) - 1)
    return "/".join(names[:first])


def expand_braces(pattern: str) -> list[str]:
    """``a{b,c}`` as ``ab`` and ``ac``; braces may be nested. A brace without its partner is an ordinary character."""
    depth, start, cuts = 0, -1, list[int]()
    for i, char in enumerate(pattern):
        if char == "{":
            depth += 1
            if depth == 1:
                start, cuts = i, [i]
        elif char == "," and depth == 1:
            cuts.append(i)
        elif char == "}" and depth:
            depth -= 1
            if depth == 0 and len(cuts) > 1:
                options = [pattern[a + 1 : b] for a, b in zip(cuts, [*cuts[1:], i], strict=True)]
                return [whole for option in options for whole in expand_braces(pattern[:start] + option + pattern[i + 1 :])]
    return [pattern]


def matcher(pattern: str) -> re.Pattern[str]:
    """A regular expression for whole paths with ``/`` between their names; braces must be expanded."""
    out, i = "", 0
    while i < len(pattern):
        char = pattern[i]
        if pattern.startswith("**/", i) and (i == 0 or pattern[i - 1] == "/"):
            out, i = out + "(?:[^/]+/)*", i + 3
            continue
        if pattern[i:] == "**" and (i == 0 or pattern[i - 1] == "/"):
            return re.compile(out + ".*")
        end = pattern.find("]", i + 2) if char == "[" else -1
        if end > 0:
            body = pattern[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "[" + ("^" + body[1:] if body[0] in "!^" else body) + "]", end + 1
            continue
        out += "[^/]*" if char == "*" else "[^/]" if char == "?" else re.escape(char)
        i += 1
    return re.compile(out)


def matching(patterns: list[str], names: list[str]) -> list[str]:
    """The names that match a pattern, in their own order."""
    whole = [matcher(one) for pattern in patterns for one in expand_braces(pattern.removeprefix("./"))]
    return [name for name in names if any(m.fullmatch(name) for m in whole)]
