"""Surroundings of a flow run, made once for its plan and its session: settings, addresses of servers, store, observer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from flows.running.observer import COMMAND, Observer
from infra.settings import Places, Settings, apply_environment
from infra.store.store import Store


@dataclass(frozen=True)
class Surroundings:
    """See the module docstring.

    Attributes:
        on_server: a worker has started the flow run; else a command runs it in its process.
        command: what starts the same run again; empty for a flow run of a worker.
    """

    settings: Settings
    places: Places
    store: Store
    observer: Observer
    on_server: bool
    command: str = ""

    @classmethod
    def of_run(cls, observer: Observer) -> Self:
        """Return the surroundings of the flow run in this process.

        Args:
            observer: of a run that no command watches.
        """
        settings, command = Settings(), COMMAND.get()
        places = command.places if command else apply_environment(settings)
        line = command.line if command else ""
        return cls(settings, places, Store(settings.store_uri), command.observer if command else observer, command is None, line)
