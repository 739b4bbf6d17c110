"""Notices about lost nodes while a training runs: which ranks were lost, at which step, what is waited for, and how to go on with fewer.

Ray Train starts all ranks again when their resources are there, and until then says nothing. A thread of the stage's process looks at the
cluster's nodes every second; its sentences go to the job's log, and with it to Prefect's, and to the stage's journal, and with it to the
terminal and the progress on the run's page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from dora_core.config.execution import Execution
from dora_core.strict_model import StrictModel
from infra.store.journal import newest_events
from infra.store.store import StageFolder, Store
from tasks.runtime.stage import StageContext

RANKS = "scratch/ranks"
LOOK_SECONDS = 1.0
REPEAT_SECONDS = 30.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster, alive or dead."""

    id: str
    address: str
    alive: bool
    cpus: float = 0.0
    gpus: float = 0.0


class Placement(StrictModel):
    """Node of one rank; ``started``, in epoch seconds, distinguishes attempts and is not compared with any clock."""

    rank: int
    node: str
    address: str
    started: float


def record_rank(folder: StageFolder, rank: int) -> None:
    """Record the node of this process's rank; called in every worker at its start."""
    import ray

    context = ray.get_runtime_context()
    place = Placement(rank=rank, node=context.get_node_id(), address=ray.util.get_node_ip_address(), started=time.time())
    folder.write_json(f"{RANKS}/{rank}.json", place.model_dump())


def placements(store: Store, stage: str, digest: str) -> list[Placement]:
    """Return the recorded ranks, those of an earlier attempt with more ranks too."""
    names = store.list(f"{stage}/{digest}/{RANKS}")
    found = (store.read_json(f"{stage}/{digest}/{RANKS}/{name}") for name in names)
    return sorted((Placement.model_validate(content) for content in found if content is not None), key=lambda place: place.rank)


@dataclass
class Losses:
    """What to say about a cluster, from one look at it to the next.

    Attributes:
        lost_at: monotonic time of the loss that is waited out; None while every rank has its node.
    """

    stage: str
    execution: Execution
    lost_at: float | None = None
    _gone: set[str] = field(default_factory=set)
    _before: dict[int, float] = field(default_factory=dict)
    _said: float = 0.0

    def look(self, nodes: list[Node], ranks: list[Placement], step: tuple[int, int] | None, now: float) -> Iterator[str]:
        """Yield the sentences that are new.

        Args:
            step: last finished step, and steps in all; None while no step is known.
            now: monotonic time.
        """
        alive = {node.id for node in nodes if node.alive}
        ours = [place for place in ranks if place.rank < self.execution.workers]
        lost = [place for place in ours if place.node not in alive and place.node not in self._gone]
        if lost:
            self._gone |= {place.node for place in lost}
            self._before = {place.rank: place.started for place in ours}
            self.lost_at, self._said = now, now
            yield f"{_names(lost)}{_at(step)}; {self._waits(nodes)}; {self._how_to_go_on(nodes)}"
        elif self.lost_at is not None:
            again = [place for place in ours if place.node in alive and place.started != self._before.get(place.rank)]
            if len(again) == self.execution.workers:
                seconds, self.lost_at = now - self.lost_at, None
                yield f"all {len(again)} ranks run again, {seconds:.0f} s after the loss; training continues from its last checkpoint"
            elif now - self._said >= REPEAT_SECONDS:
                self._said = now
                yield f"{self._waits(nodes)}, for {now - self.lost_at:.0f} s now; {self._how_to_go_on(nodes)}"

    def _waits(self, nodes: list[Node]) -> str:
        wanted = self._amount(self.execution.cpus_per_worker, self.execution.gpus_per_worker)
        has = self._amount(*(sum(getattr(node, kind) for node in nodes if node.alive) for kind in ("cpus", "gpus")))
        return f"waits for {self.execution.workers} × {wanted}, the cluster has {has}"

    def _amount(self, cpus: float, gpus: float) -> str:
        return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if self.execution.gpus_per_worker else "")

    def _how_to_go_on(self, nodes: list[Node]) -> str:
        fewer = min(self.fit(nodes), self.execution.workers - 1)
        on = "it goes on by itself when the node is back"
        if fewer < 1:
            return on
        again = f"--set execution.{self.stage}.workers={fewer}"
        return f"{on}; with fewer: stop this run, and run it again with {again}, which continues from the last checkpoint"

    def fit(self, nodes: list[Node]) -> int:
        """Return how many workers the living nodes have room for."""
        needs = ((self.execution.cpus_per_worker, "cpus"), (self.execution.gpus_per_worker, "gpus"))
        return sum(min(int(getattr(node, kind) // need) for need, kind in needs if need > 0) for node in nodes if node.alive)


def _names(lost: list[Placement]) -> str:
    by_node: dict[str, list[Placement]] = {}
    for place in lost:
        by_node.setdefault(place.node, []).append(place)
    parts = []
    for node, places in by_node.items():
        ranks = ", ".join(str(place.rank) for place in places)
        parts.append(f"node {places[0].address} ({node[:8]}) is lost, and with it rank{'s' if len(places) > 1 else ''} {ranks}")
    return "; ".join(parts)


def _at(step: tuple[int, int] | None) -> str:
    return "" if step is None else f", at step {step[0]} of {step[1]}"


def ray_nodes() -> list[Node]:
    import ray

    return [_node(entry) for entry in ray.nodes()]


def _node(entry: dict[str, Any]) -> Node:
    resources = entry.get("Resources", {})
    return Node(entry["NodeID"], entry["NodeManagerAddress"], entry["Alive"], resources.get("CPU", 0.0), resources.get("GPU", 0.0))


class NodeWatch:
    """Says what :class:`Losses` has to say while the block runs.

    Args:
        nodes: returns the cluster's nodes.
    """

    def __init__(self, context: StageContext, stage: str, digest: str, execution: Execution, nodes: Callable[[], list[Node]] = ray_nodes):
        self._context, self._stage, self._digest, self._nodes = context, stage, digest, nodes
        self._losses = Losses(stage, execution)
        self._earlier = placements(context.store, stage, digest)  # of an earlier run, perhaps on other nodes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with suppress(Exception):  # the head is away, a file is being written: the next look
                self.look()

    def look(self) -> None:
        """Look once, and say what is new."""
        store = self._context.store
        known = placements(store, self._stage, self._digest)
        ranks = [place for place in known if place not in self._earlier]
        for text in self._losses.look(self._nodes(), ranks, self._step(), time.monotonic()):
            self._context.log.warning("%s: %s", self._stage, text)
            self._context.journal.notice(text)

    def _step(self) -> tuple[int, int] | None:
        events = newest_events(self._context.store, self._stage, self._digest)
        done = [(event["done"], event["total"]) for event in events if event["kind"] == "progress" and event["unit"] == "steps"]
        return done[-1] if done else None
