"""Stages: a frozen spec, a digest, a ``run`` function, a folder, a result.

A stage module defines ``class Spec(StageSpec)`` and ``def run(spec, context) -> StageOutput`` and ends with its descriptor,
``STAGE = Stage(Spec, run, …)`` (``tasks/runtime/descriptor.py``). The same pair is called in three ways, all through :func:`execute`:
as a Ray job (``python -m tasks.stages align --spec <store>/align/<digest>/spec.json``), in the flow's own process (stages with
``placement = "local"``), and directly in tests.

Specs and digests are ``tasks/runtime/spec.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_core.environment import set_default, variable
from dora_core.errors import DoraError
from dora_core.remote_files import outages
from infra.store.journal import JournalWriter
from infra.store.json_files import Result, StoredError, StoredResult, parsed
from infra.store.store import ERROR, RESULT, SPEC, StageFolder, Store, full_disk, split_uri
from tasks.runtime.facts import F, Facts
from tasks.runtime.memory import peak_memory, restart_peak
from tasks.runtime.spec import StageRef, StageSpec


@dataclass
class StageOutput:
    """Return value of ``run``; :func:`execute` adds checksums, seconds, versions and writes ``result.json``.

    Attributes:
        rows: rows written.
        metrics: few, named, finite numbers; they go to MLflow as they are.
        facts: details for figures and the report (tables, histograms, decisions).
    """

    rows: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)


@dataclass
class StageContext:
    """Environment of a running stage: folders, store, journal, log.

    Attributes:
        warnings: added to the warnings of the stage's own facts; see :meth:`warn`.
        memory: peaks of this stage's other processes, bytes.
    """

    store: Store
    folder: StageFolder
    journal: JournalWriter
    log: logging.Logger
    warnings: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Local working folder; all output goes here."""
        return self.folder.path

    @property
    def scratch(self) -> Path:
        """Local folder for files that are not output (kept for resume, never published)."""
        (self.path / "scratch").mkdir(exist_ok=True)
        return self.path / "scratch"

    def fetch(self, ref: StageRef) -> Path:
        """Local folder with an input stage's files."""
        return self.store.fetch(ref.stage, ref.digest)

    def result(self, ref: StageRef) -> StoredResult:
        """An input stage's ``result.json``."""
        result = self.store.read_result(ref.stage, ref.digest)
        assert result is not None, f"{ref} was planned but has no result"
        return result

    def facts(self, ref: StageRef, model: type[F]) -> F:
        """An input stage's facts; ``model`` is that stage's ``Facts``."""
        return parsed(model, self.result(ref)["facts"], f"{ref.stage}/{ref.digest}/{RESULT}")

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.journal.progress(done, total, unit, note)

    def warn(self, message: str) -> None:
        """Warn users about how this stage ran: in the log, and in the result, for pages and tables."""
        self.log.warning("%s", message)
        self.warnings.append(message)


Run = Callable[[Any, StageContext], StageOutput]


def execute(spec: StageSpec, run: Run, store: Store) -> StoredResult:
    """Run a stage unless its result is already there; returns ``result.json``'s content.

    Raises:
        DoraError: as raised by ``run``; also written to ``error.json`` so that a supervisor in another process sees it.
        StoreError: a disk is full, even if ``run`` raised another error for it.
    """
    digest = spec.digest()
    if spec.is_done(store):
        result = store.read_result(spec.stage, digest)
        assert result is not None
        return result
    folder = store.folder(spec.stage, digest)
    (folder.path / ERROR).unlink(missing_ok=True)
    context = StageContext(store, folder, JournalWriter(folder), logging.getLogger(f"dora.{spec.stage}"))
    started, clock = time.time(), time.monotonic()
    restart_peak()
    outlasted = len(outages)
    try:
        output = run(spec, context)
        context.journal.flush()
        context.warnings += [str(outage) for outage in outages[outlasted:]]
        extra = {"warnings": [*output.facts.warnings, *context.warnings]} if context.warnings else {}
        content: Result = {
            "stage": spec.stage,
            "digest": digest,
            "spec": spec.payload(),
            "inputs": {name: ref.model_dump() for name, ref in spec.inputs().items()},
            "rows": output.rows,
            "metrics": {k: float(v) for k, v in output.metrics.items()},
            "facts": output.facts.dump() | extra,
            "started": started,
            "seconds": time.monotonic() - clock,
            "python": platform.python_version(),
        }
        if peaks := [*context.memory, *filter(None, [peak_memory()])]:
            content["memory"] = max(peaks)
        store.mark_done(folder, content)
    except (SystemExit, KeyboardInterrupt):  # a stop is not an error of the stage
        raise
    except BaseException as error:  # torch.distributed.checkpoint raises a BaseException
        named = _full_disk(error, folder)
        with suppress(OSError, DoraError):  # a full disk has no space for it either; the cause is raised all the same
            folder.write_json(ERROR, describe_error(named or error))
        if named is not None:
            raise named from error
        raise
    finally:
        with suppress(OSError, DoraError):
            context.journal.flush()
    shutil.rmtree(folder.path / "scratch", ignore_errors=True)  # needed for resume until here
    result = store.read_result(spec.stage, digest)
    assert result is not None
    return result


def describe_error(error: BaseException) -> StoredError:
    """JSON form of any exception: the innermost :class:`DoraError` in the chain if there is one, else type and place."""
    for cause in _causes(error):
        if isinstance(cause, DoraError):
            return StoredError(type=type(cause).__name__, message=cause.message, hint=cause.hint, retryable=cause.retryable)
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return {
        "type": type(error).__name__,
        "message": f"{type(error).__name__}{place}: {error}",
        "hint": "",
        "retryable": False,
        "traceback": "".join(traceback.format_exception(error)),
    }


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, its cause, and so on; each once, since an exception that Ray wraps is raised from its wrapping."""
    cause: BaseException | None = error
    seen = set[int]()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        # Ray keeps a worker's exception in special attributes rather than in __cause__.
        failures = getattr(cause, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) and inner is not cause else (cause.__cause__ or cause.__context__)


def _full_disk(error: BaseException, folder: StageFolder) -> DoraError | None:
    """Return the error to raise instead of ``error`` if its cause is a full disk and the chain has no such error yet."""
    for cause in _causes(error):
        if isinstance(cause, DoraError):
            return None
        if (named := full_disk(cause, folder.path)) is not None:
            return named
    return None


def write_spec(spec: StageSpec, store: Store) -> str:
    """Store the full spec (execution fields included) and return its URI, the only argument a stage process needs."""
    store.folder(spec.stage, spec.digest()).write_json(SPEC, spec.model_dump(mode="json", by_alias=True))
    return f"{store.uri}/{spec.stage}/{spec.digest()}/{SPEC}"


def prepare_process() -> None:
    """Set up logging of a process that runs stages; silence its libraries, since progress goes through the journal."""
    set_default("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    set_default("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=variable("DORA_LOG_LEVEL") or "INFO", format="%(levelname)s %(name)s: %(message)s")


def main(stages: Mapping[str, tuple[type[StageSpec], Run]], argv: list[str] | None = None) -> None:
    """Entry point of ``python -m tasks.stages <stage> --spec <uri>``. Exit code 0 only after ``result.json`` is written."""
    parser = argparse.ArgumentParser(prog="python -m tasks.stages", description="Run one stage from its stored spec.")
    parser.add_argument("stage", choices=sorted(stages))
    parser.add_argument("--spec", required=True, help="URI of the spec.json written by the flow")
    arguments = parser.parse_args(argv)
    uri = arguments.spec
    spec_class, run = stages[arguments.stage]
    prepare_process()
    root, (stage, digest, _) = split_uri(uri, 3)
    store = Store(root)
    data = store.read_json(f"{stage}/{digest}/{SPEC}")
    if data is None:
        raise SystemExit(f"no spec at {uri}; it is written by the flow that submits this job")
    spec = spec_class.model_validate(data)
    if spec.digest() != digest:
        raise SystemExit(f"spec at {uri} has digest {spec.digest()[:12]}: the submitting flow runs another version of dora")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a stopped job still unwinds and exits with its own code
    try:
        result = execute(spec, run, store)
    except DoraError as error:
        raise SystemExit(f"{stage} failed: {error}") from None
    print(json.dumps({"stage": stage, "rows": result["rows"], "seconds": round(result["seconds"], 2)}), flush=True)
