"""Deaths of workers (kill −9, out of memory, lost node), and what follows: rows that kill every worker are told apart from a machine on
which any worker dies.

Policy, with n = ``execution.max_failures``. A shard whose worker died is tried again; one that has killed more than n workers is *set
aside*, and the step fails for it when all others are finished. More than n shards set aside, or deaths at more than n others (those of
starting workers included), are no shard's fault and end the step at once. So deaths are bounded, by (n + 1)² + n², and nothing hangs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from dora_core.errors import StageFailed


@dataclass
class Deaths:
    """Counts deaths by place.

    Args:
        most: n of the module docstring.
        stage: whose ``execution`` the hints name.
        log: gets a warning per death.
    """

    most: int
    stage: str
    log: logging.Logger
    _by_place: dict[str | None, int] = field(default_factory=dict)
    _last: BaseException | None = None

    def count(self, place: str | None, error: BaseException) -> bool:
        """A worker died in ``place`` ("rows 0 to 10"; None: while it started). Whether to try that place again.

        Raises:
            StageFailed: it is no place's fault.
        """
        n = self._by_place[place] = self._by_place.get(place, 0) + 1
        self._last = error
        aside = self._set_aside()
        others = sum(deaths if where is None else 1 for where, deaths in self._by_place.items() if where not in aside)
        if max(len(aside), others) > self.most:
            raise self._failure(self._by_place) from error
        then = "is tried again" if place not in aside else "is set aside, the others go on"
        self.log.warning("a worker died: %s, %s, %s", place or "starting", _times(n), then)
        return place not in aside

    def raise_those_set_aside(self) -> None:
        """
        Raises:
            StageFailed: there are some; all others are finished.
        """
        if aside := self._set_aside():
            raise self._failure({place: self._by_place[place] for place in aside}) from self._last

    def _set_aside(self) -> list[str | None]:
        return [place for place, n in self._by_place.items() if place is not None and n > self.most]

    def _failure(self, deaths: dict[str | None, int]) -> StageFailed:
        places = ", ".join(f"{place or 'while starting'} {_times(n)}" for place, n in deaths.items())
        if len(deaths) == 1 and None not in deaths:
            what, remedy = f"the same rows killed every worker that took them: {places}", "batch_tokens"
        else:
            what, remedy = f"{sum(deaths.values())} workers died in different places: {places}", "workers or batch_tokens"
        return StageFailed(
            f"{what} ({str(self._last).strip().splitlines()[0]})",
            hint=f"usually out of memory: lower {remedy} of execution.{self.stage} and run the same command again: what is finished is "
            "kept. max_failures there is the number of deaths survived",
        )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
