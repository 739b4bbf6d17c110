"""Callbacks of a run's progress, and how a command passes its own to the flow that it runs in its process."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.settings import Places

if TYPE_CHECKING:
    from flows.planning.planned_stage import Plan, PlannedStage
    from flows.running.question import Question
    from infra.store.journal import JournalEvent
    from infra.store.json_files import StoredResult
    from tasks.stages.promote import Answer


class Observer:
    """Callbacks of a run's progress; each does nothing here. The command line draws bars, a flow run on a server updates artifacts."""

    def waiting(self, why: str) -> None: ...

    def planned(self, run_id: str, plan: Plan) -> None: ...

    def started(self, stage: PlannedStage) -> None: ...

    def event(self, stage: PlannedStage, event: JournalEvent) -> None:
        """Handle one event of the stage's journal."""

    def log(self, stage: PlannedStage, line: str) -> None:
        """Handle one line of the log of the stage's Ray job."""

    def finished(self, stage: PlannedStage, state: str, result: StoredResult | None, why: str = "") -> None:
        """Handle the end of a stage.

        Args:
            state: ``ran``, ``cached``, ``failed`` or ``cancelled``.
            result: content of its ``result.json``; None unless it ran or was cached.
            why: the error in one line, of a stage that failed.
        """

    def decide(self, question: Question) -> Answer | None:
        """Return the decision of the person at the terminal; None without one."""
        return None


@dataclass(frozen=True)
class Command:
    """Values that a command passes to the flow that it runs in its own process; unset in a flow run started by a worker.

    Attributes:
        line: what was typed, to run it again.
    """

    places: Places
    observer: Observer
    line: str = ""


COMMAND: ContextVar[Command | None] = ContextVar("dora_command", default=None)
