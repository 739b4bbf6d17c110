"""Facts of the stage ``truth``."""

from __future__ import annotations

from tasks.runtime.facts import Facts as BaseFacts


class Facts(BaseFacts):
    """Sources of the mixture, the golden one first, and the share of each."""

    sources: list[str]
    shares: dict[str, float]
