"""Policy for worker failures (kill −9, out of memory, a lost node): distinguish poison work from an unhealthy node.

*Work* is the unit that one worker takes at a time: a shard of rows, a stage of a batch. With n = ``execution.max_failures``: work whose
worker died is tried again; work that has killed more than n workers is *set aside*, and the step fails for it when all other work is
finished. More than n pieces of work set aside, or deaths at more than n others (deaths of starting workers included), mean an unhealthy
node, and the step ends at once. So at most (n + 1)² + n² workers die, and nothing hangs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from dora_core.errors import StageFailed

_KILLED = {"rows": "the same rows killed every worker that took them", "stage": "the same stage killed every worker that took it"}


@dataclass
class WorkerFailures:
    """Count of worker deaths by work.

    Args:
        most: n of the module docstring.
        section: of the configuration, where the hints point: ``execution.calibrate``.
        log: receives a warning per death.
        unit: kind of work, for messages.
        budgets: keys of ``section`` that lower a worker's memory.
    """

    most: int
    section: str
    log: logging.Logger
    unit: Literal["rows", "stage"] = "rows"
    budgets: Sequence[str] = ("batch_tokens",)
    _deaths: dict[str | None, int] = field(default_factory=dict)
    _last: BaseException | None = None

    def record(self, work: str | None, error: BaseException) -> bool:
        """Count the death of a worker; returns whether to try its work again.

        Args:
            work: in words ("rows 0 to 10"); None: the worker was starting.
            error: Ray's error for the death.

        Raises:
            StageFailed: the node is unhealthy.
        """
        n = self._deaths[work] = self._deaths.get(work, 0) + 1
        self._last = error
        aside = self._set_aside()
        others = sum(deaths if place is None else 1 for place, deaths in self._deaths.items() if place not in aside)
        if max(len(aside), others) > self.most:
            raise self._failure(self._deaths) from error
        then = "is tried again" if work not in aside else "is set aside, the others continue"
        self.log.warning("a worker died: %s, %s, %s", work or "starting", _times(n), then)
        return work not in aside

    def failure_of(self, work: str) -> StageFailed:
        """Return the error of work that was set aside."""
        return self._failure({work: self._deaths[work]})

    def raise_set_aside(self) -> None:
        """
        Raises:
            StageFailed: work was set aside; all other work is finished.
        """
        if aside := self._set_aside():
            raise self._failure({work: self._deaths[work] for work in aside}) from self._last

    @contextmanager
    def object_store(self) -> Iterator[None]:
        """Translate Ray's errors of a full object store, which no other attempt would survive.

        Raises:
            StageFailed: the object store is full, or the disk that it spills to.
        """
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        try:
            yield
        except (ObjectStoreFullError, OutOfDiskError) as error:
            full = "the disk that Ray's object store spills to" if isinstance(error, OutOfDiskError) else "Ray's object store"
            raise StageFailed(
                f"{full} is full ({str(error).strip().splitlines()[0]})",
                hint=f"lower workers or shard_rows of {self.section}, free the disk of Ray's temporary folder, or start Ray with a larger "
                "object_store_memory; then run the same command again: finished work is kept",
            ) from error

    def _set_aside(self) -> list[str]:
        return [work for work, n in self._deaths.items() if work is not None and n > self.most]

    def _failure(self, deaths: Mapping[str | None, int] | Mapping[str, int]) -> StageFailed:
        places = ", ".join(f"{work or 'while starting'} {_times(n)}" for work, n in deaths.items())
        if len(deaths) == 1 and None not in deaths:
            found, keys = f"{_KILLED[self.unit]}: {places}", [*self.budgets]
        else:
            found, keys = f"{sum(deaths.values())} workers died in different places: {places}", ["workers", *self.budgets]
        lower = " or ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
        return StageFailed(
            f"{found} ({str(self._last).strip().splitlines()[0]})",
            hint=f"usually out of memory: lower {lower} of {self.section} and run the same command again: finished work is kept. "
            "max_failures there is the number of deaths survived",
        )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
