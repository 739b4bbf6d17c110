"""Keys of Prefect's artifacts: lower-case letters, digits and dashes; different texts have different keys."""

from __future__ import annotations

import hashlib
import re


def artifact_key(text: str) -> str:
    """Return the key for a text such as ``realign-my.project``.

    A space becomes a dash. Where another character does not fit, 8 digits of the text's sha256 follow: ``a.b`` and ``a_b`` stay apart.
    """
    plain = re.sub(r"[^a-z0-9-]", "-", text)
    return plain if plain == text.replace(" ", "-") else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
