"""The question of a prompt: what stays when system message, white space, Unicode form and later turns are taken away.

Prompts with one question are not the same prompt, but a model that was trained on one of them has seen the other.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

from dora_core.data.records import hash_prompt


def question_of(prompt: Sequence[Mapping[str, str]]) -> str:
    """Return the text of the first user turn (all turns where none is the user's) in the form NFKC, white space as single spaces."""
    first = next((message["content"] for message in prompt if message["role"] == "user"), None)
    return _plain("\n".join(message["content"] for message in prompt) if first is None else first)


def question_hash(prompt: Sequence[Mapping[str, str]]) -> int:
    """uint64: the hash of a prompt that is the question alone."""
    return hash_prompt([{"role": "user", "content": question_of(prompt)}])


@lru_cache(maxsize=1024)
def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())
