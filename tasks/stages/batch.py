"""Stage ``batch``: many small stages in one job, on a few warm processes.

A job costs seconds before it computes anything (a process, imports, Ray, workers), more than a small stage takes. Here the
stages of a batch share one job and ``execution.workers`` actors that import torch once. Each stage still has its own
digest, folder, journal and result, as if it had run alone.

Input: specs that are in the store already, as ``<stage>/<digest>/spec.json``; their inputs are in the batch or finished, and on-demand
stages that they read (:meth:`tasks.runtime.stage.StageSpec.preparation`) run with them.
Output: their results, and a count. Guarantee: a stage starts when its inputs are finished, a finished one never runs again, and every
other one is tried. Cost: that of the stages over the actors, and one start.

Failure policy: the *death* of an actor costs its stage one attempt, and the stage starts again on another actor. A poison stage, which
killed more than ``execution.max_failures`` actors, fails; an unhealthy node, on which different stages kill theirs, ends the batch
(``tasks/runtime/worker_failures.py``). A stage that *fails* costs its dependants. The others still run; at the end the first failure
is raised, with the others in its hint.

Left out: stages with Ray workers (``execution.workers`` > 0). They would wait for resources that this batch holds, so they are refused.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.errors import ConfigError, StageFailed, StoreError
from infra.store.json_files import StoredError
from infra.store.store import SPEC, Store
from tasks.runtime.actor_pool import run_on_actors
from tasks.runtime.descriptor import STAGES, Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import Run, StageContext, StageOutput, describe_error, execute, prepare_process
from tasks.runtime.worker_failures import WorkerFailures
from tasks.runtime.workers import use_threads

MAX_LISTED = 20


class Spec(StageSpec):
    """See the module docstring. ``execution`` applies to the actors; each stage's own ``execution`` applies within its actor."""

    stage: ClassVar[str] = "batch"

    stages: list[StageRef] = Field(min_length=1)

    def inputs(self) -> dict[str, StageRef]:
        """Return no inputs: the stages are the output of a batch."""
        return {}

    def is_done(self, store: Store) -> bool:
        """Whether all stages are finished: one may have been deleted since the batch ran."""
        return super().is_done(store) and all(store.is_done(ref.stage, ref.digest) for ref in self.stages)


class Facts(BaseFacts):
    """Stages of the batch."""

    done: int
    cached: int = Field(description="Of them finished before.")
    seconds: dict[str, float] = Field(description="Time in stages, by stage name.")


def run(spec: Spec, context: StageContext) -> StageOutput:
    named = [load_spec(ref, context.store) for ref in spec.stages if not context.store.is_done(ref.stage, ref.digest)]
    todo = with_preparation(named, context.store)
    board = Board(todo, context, cached=len(spec.stages) - len(named))
    if todo:
        if spec.execution.workers == 0:
            _in_process(board, context)
        else:
            _on_actors(board, spec.execution, context)
    board.raise_failures()
    seconds = {stage: round(s, 2) for stage, s in board.seconds.items()}
    facts = Facts(done=len(spec.stages), cached=board.cached, seconds=seconds)
    return StageOutput(rows=len(spec.stages), metrics={"ran": len(todo), "cached": board.cached}, facts=facts)


def load_spec(ref: StageRef, store: Store) -> StageSpec:
    """Read a stage's spec from the store.

    Raises:
        StoreError: the store has no spec, or this version of the code gives it another digest. ConfigError: it has Ray workers.
    """
    data = store.read_json(f"{ref.stage}/{ref.digest}/{SPEC}")
    if data is None:
        raise StoreError(f"the batch names {_short(ref)} and the store has no spec of it", hint="the flow that submits a batch writes them")
    spec: StageSpec = STAGES[ref.stage].spec.model_validate(data)
    if spec.digest() != ref.digest:
        raise StoreError(
            f"the spec of {_short(ref)} has digest {spec.digest()[:8]}: the submitting flow runs another version of dora",
            hint="install the same version for the flow and on the Ray cluster",
        )
    if spec.execution.workers != 0:
        raise ConfigError(
            f"{_short(ref)} has execution.workers={spec.execution.workers} inside a batch",
            hint="a batch runs each stage in one of its processes: set the stage's execution.workers to 0",
        )
    return spec


def with_preparation(specs: Sequence[StageSpec], store: Store) -> list[StageSpec]:
    """``specs``, each after the on-demand stages that it reads and that are neither finished nor among them."""
    listed = {spec.digest() for spec in specs}
    found: list[StageSpec] = []
    for spec in specs:
        for data in spec.preparation().values():
            if data.digest() not in listed and not data.is_done(store):
                listed.add(data.digest())
                found.append(data)
        found.append(spec)
    return found


def _short(ref: StageRef) -> str:
    """``"align 1a2b3c4d"``."""
    return f"{ref.stage} {ref.digest[:8]}"


# ------------------------------------------------------------------------------------------------------------- schedule


@dataclass(frozen=True)
class Outcome:
    """Outcome of one attempt at a stage: ``error`` is None or :func:`tasks.runtime.stage.describe_error`'s description."""

    seconds: float
    error: StoredError | None


def attempt(spec: StageSpec, run: Run, store: Store) -> Outcome:
    """Run one stage here. Its exceptions are an outcome; a stop (SystemExit, KeyboardInterrupt) is not."""
    started, error = time.monotonic(), None
    try:
        execute(spec, run, store)
    except Exception as raised:
        error = describe_error(raised)
    return Outcome(time.monotonic() - started, error)


class Board:
    """Schedule and state of the stages of a batch. Starts the one with the longest chain of dependants first, so that
    no chain is left over for a single worker at the end; ties go by the order of the batch.

    Args:
        todo: unfinished stages; their inputs are among them or in the store.
        cached: finished stages of the batch, for the progress bar.

    Raises:
        StoreError: an input is neither among ``todo`` nor in the store.
    """

    def __init__(self, todo: Sequence[StageSpec], context: StageContext, cached: int):
        self.cached = cached
        self.seconds: dict[str, float] = {}
        self._context, self._total, self._done = context, len(todo) + cached, cached
        self._refs = [spec.ref() for spec in todo]
        self._specs = {ref.digest: spec for ref, spec in zip(self._refs, todo, strict=True)}
        self._failures: dict[str, StoredError] = {}
        self._running: dict[str, StageRef] = {}
        self._waits: dict[str, set[str]] = {}
        self._dependants: dict[str, list[str]] = {digest: [] for digest in self._specs}
        for ref, spec in zip(self._refs, todo, strict=True):
            inputs = spec.inputs().values()
            self._waits[ref.digest] = {i.digest for i in spec.predecessors().values() if i.digest in self._specs}
            for other in self._waits[ref.digest]:
                self._dependants[other].append(ref.digest)
            for missing in (i for i in inputs if i.digest not in self._specs and not context.store.is_done(i.stage, i.digest)):
                raise StoreError(
                    f"{_short(ref)} reads {_short(missing)}, which is neither in the batch nor finished", hint="add it to the batch"
                )

        @cache
        def chain(digest: str) -> int:
            """Return the number of stages on the longest path from ``digest`` to an end."""
            return 1 + max((chain(d) for d in self._dependants[digest]), default=0)

        self._order = {ref.digest: (-chain(ref.digest), position) for position, ref in enumerate(self._refs)}
        self._ready = [(*self._order[d], d) for d, waits in self._waits.items() if not waits]
        heapq.heapify(self._ready)
        self._report()

    def has_ready(self) -> bool:
        return bool(self._ready)

    def expects_more(self) -> bool:
        """Whether a stage waits for one that runs."""
        return any(self._running.keys() & waits for waits in self._waits.values())

    @property
    def unfinished(self) -> int:
        return self._total - self._done

    def take(self) -> StageSpec:
        """Return the next stage; it counts as running until :meth:`settle`, :meth:`set_aside` or :meth:`give_back`."""
        *_, digest = heapq.heappop(self._ready)
        spec = self._specs[digest]
        self._running[digest] = spec.ref()
        self._report()
        return spec

    def task(self, item: StageSpec) -> tuple[StageSpec, Run]:
        return item, _run_of(item)

    def describe(self, item: StageSpec) -> str:
        return _short(item.ref())

    def give_back(self, item: StageSpec) -> None:
        """Put back a stage whose worker died: it may start again."""
        digest = item.digest()
        del self._running[digest]
        heapq.heappush(self._ready, (*self._order[digest], digest))

    def set_aside(self, item: StageSpec, failure: StageFailed) -> None:
        """Fail the stage; the others still run."""
        self.settle(item, Outcome(0.0, describe_error(failure)))

    def settle(self, spec: StageSpec, outcome: Outcome) -> None:
        """Record the outcome of a stage; stages that waited for it alone may start."""
        digest = spec.digest()
        ref = self._running.pop(digest)
        self.seconds[ref.stage] = self.seconds.get(ref.stage, 0.0) + outcome.seconds
        if outcome.error is not None:
            self._failures[digest] = outcome.error
            self._context.log.error("%s failed: %s", _short(ref), outcome.error["message"])
            return
        self._done += 1
        self._context.log.info("%s done in %.1f s (%d of %d)", _short(ref), outcome.seconds, self._done, self._total)
        for waiting in self._dependants[digest]:
            self._waits[waiting].discard(digest)
            if not self._waits[waiting]:
                heapq.heappush(self._ready, (*self._order[waiting], waiting))
        self._report()

    def raise_failures(self) -> None:
        """
        Raises:
            StageFailed: at least one stage failed; with the first one's message, the others, and how many could not start.
        """
        if not self._failures:
            return
        (first, error), *others = self._failures.items()
        blocked = self.unfinished - len(self._failures)
        hint = [error["hint"]] if error["hint"] else []
        hint += [f"also failed: {_short(self._specs[d].ref())}: {_headline(e)}" for d, e in others[:MAX_LISTED]]
        hint += [f"and {len(others) - MAX_LISTED} more"] if len(others) > MAX_LISTED else []
        hint += [f"{blocked} stages that depend on {'these' if others else 'it'} were not run"] if blocked else []
        hint.append(f"{self._done} of {self._total} stages are finished and kept: run the same command again")
        raise StageFailed(f"{_short(self._specs[first].ref())}: {error['message']}", hint="\n".join(hint), retryable=error["retryable"])

    def _report(self) -> None:
        self._context.progress(self._done, self._total, "stages", ", ".join(map(_short, self._running.values())))


def _headline(error: StoredError) -> str:
    message: str = error["message"]
    return (message.splitlines() or [""])[0]


# ------------------------------------------------------------------------------------------------------ where it runs


def _run_of(spec: StageSpec) -> Run:
    return STAGES[spec.stage].run


def _in_process(board: Board, context: StageContext) -> None:
    while board.has_ready():
        spec = board.take()
        board.settle(spec, attempt(spec, _run_of(spec), context.store))


def _on_actors(board: Board, execution: Execution, context: StageContext) -> None:
    """Yield outcomes, with one stage per actor in flight."""
    budgets = ("batch_tokens", "micro_batch_tokens")
    failures = WorkerFailures(execution.max_failures, "execution.default", context.log, "stage", budgets)
    size = min(execution.workers, board.unfinished)
    arguments = (execution, context.store.uri)
    finished = run_on_actors(board, _StageActor, arguments, size=size, execution=execution, failures=failures, journal=context.journal)
    with closing(finished):
        for one in finished:
            board.settle(one.item, one.answer)


class _StageActor:
    """A warm process: torch and transformers are imported before the first stage arrives."""

    def __init__(self, execution: Execution, store_uri: str):
        prepare_process()
        import transformers  # noqa: F401

        use_threads(execution)
        self._store = Store(store_uri)

    def ready(self) -> None:
        return None

    def work(self, spec: StageSpec, run: Callable[..., StageOutput]) -> Outcome:
        return attempt(spec, run, self._store)


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.done} stages, {result.facts.cached} cached"


STAGE = Stage(Spec, run, Facts, headline=headline)
