"""Stages: a frozen spec, a digest, a ``run`` function, a folder, a result.

A stage module defines ``class Spec(StageSpec)`` and ``def run(spec, context) -> StageOutput`` and ends with its descriptor,
``STAGE = Stage(Spec, run, …)`` (``tasks/runtime/descriptor.py``). The same pair is called in three ways, all through :func:`execute`:
as a Ray job (``python -m tasks.stages align --spec <store>/align/<digest>/spec.json``), in the flow's own process (stages with
``placement = "local"``), and directly in tests.

Guarantee: same digest ⇒ same output, so a finished digest is never computed again. Fields marked ``NotInDigest``
change how a stage runs and not its output.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig
from dora_core.errors import DoraError
from dora_core.strict_model import StrictModel
from infra.store.journal import JournalWriter
from infra.store.store import ERROR, SPEC, StageFolder, Store, full_disk, sha256_of, split_uri
from tasks.runtime.facts import F, Facts

DIGEST_PATTERN = r"^[0-9a-f]{64}$"


class _NotInDigest:
    """Marker: this field changes how a stage runs, not its output."""


NotInDigest = _NotInDigest()
Execute = Annotated[Execution, NotInDigest]


class StageRef(StrictModel):
    """Points at another stage's output by content, never by path."""

    stage: str
    digest: str = Field(pattern=DIGEST_PATTERN)


def local_model(source: ModelConfig | StageRef, store_uri: str) -> ModelConfig | Path:
    """The model as a worker loads it: by name, or the folder of a stage's model, fetched to this machine."""
    return Store(store_uri).fetch(source.stage, source.digest) / "model" if isinstance(source, StageRef) else source


class StageSpec(StrictModel):
    """Base of all specs. Subclasses set ``stage`` and ``version``; raise ``version`` when the output's schema or meaning changes.

    Attributes:
        placement: ``job`` runs as a Ray job, ``local`` in the flow's process.
        on_demand: the stage runs only where a stage that reads it runs. Its spec follows from its reader's (:meth:`preparation`), and no
            result refers to it.
    """

    stage: ClassVar[str]
    version: ClassVar[int] = 1
    placement: ClassVar[Literal["job", "local"]] = "job"
    on_demand: ClassVar[bool] = False

    execution: Execute = Field(default_factory=Execution)

    @classmethod
    def outside_digest(cls) -> set[str]:
        """Names of the fields marked ``NotInDigest``."""
        return {name for name, f in cls.model_fields.items() if any(isinstance(m, _NotInDigest) for m in f.metadata)}

    def payload(self) -> dict[str, Any]:
        """The values that the digest covers: every field that is not ``NotInDigest``, plus stage name and version."""
        return {"stage": self.stage, "version": self.version} | self.model_dump(mode="json", by_alias=True, exclude=self.outside_digest())

    def digest(self) -> str:
        """sha256, 64 hex digits, over canonical JSON of :meth:`payload`; inputs enter through their own digests. Computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return sha256_of(self.payload())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values; its digest is computed anew."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_digest", None)
        return copied

    def ref(self) -> StageRef:
        return StageRef(stage=self.stage, digest=self.digest())

    def inputs(self) -> dict[str, StageRef]:
        """The stages this one's result depends on (not hints such as a decision to keep a classifier), by field name; ``name.index`` in
        a list, ``name.key`` in a dictionary."""
        hints = self.outside_digest()
        return {name: ref for name, ref in self._references().items() if name.partition(".")[0] not in hints}

    def preparation(self) -> dict[str, StageSpec]:
        """On-demand stages that this one reads, by name. They are computed from this spec's own fields, so its digest covers them."""
        return {}

    def predecessors(self) -> dict[str, StageRef]:
        """The stages that must be done before this one runs: :meth:`inputs`, hints and :meth:`preparation`."""
        return self._references() | {name: spec.ref() for name, spec in self.preparation().items()}

    def _references(self) -> dict[str, StageRef]:
        """Fields that point at stages."""
        found: dict[str, StageRef] = {}
        for name, value in self:
            if isinstance(value, StageRef):
                found[name] = value
            elif isinstance(value, list):
                found |= {f"{name}.{index}": item for index, item in enumerate(value) if isinstance(item, StageRef)}
            elif isinstance(value, dict):
                found |= {f"{name}.{key}": item for key, item in value.items() if isinstance(item, StageRef)}
        return found

    def is_done(self, store: Store) -> bool:
        """Whether the result exists and is complete, so that nothing has to run."""
        return store.is_done(self.stage, self.digest())


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
    """

    store: Store
    folder: StageFolder
    journal: JournalWriter
    log: logging.Logger
    warnings: list[str] = field(default_factory=list)

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

    def result(self, ref: StageRef) -> dict[str, Any]:
        """An input stage's ``result.json``."""
        result = self.store.read_result(ref.stage, ref.digest)
        assert result is not None, f"{ref} was planned but has no result"
        return result

    def facts(self, ref: StageRef, model: type[F]) -> F:
        """An input stage's facts; ``model`` is that stage's ``Facts``."""
        return model.model_validate(self.result(ref)["facts"])

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.journal.progress(done, total, unit, note)

    def warn(self, message: str) -> None:
        """Warn users about how this stage ran: in the log, and in the result, for pages and tables."""
        self.log.warning("%s", message)
        self.warnings.append(message)


Run = Callable[[Any, StageContext], StageOutput]


def execute(spec: StageSpec, run: Run, store: Store) -> dict[str, Any]:
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
    try:
        output = run(spec, context)
        context.journal.flush()
        extra = {"warnings": [*output.facts.warnings, *context.warnings]} if context.warnings else {}
        result = {
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
        store.mark_done(folder, result)
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


def describe_error(error: BaseException) -> dict[str, Any]:
    """JSON form of any exception: the innermost :class:`DoraError` in the chain if there is one, else type and place."""
    for cause in _causes(error):
        if isinstance(cause, DoraError):
            return cause.to_json()
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
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=os.environ.get("DORA_LOG_LEVEL", "INFO"), format="%(levelname)s %(name)s: %(message)s")


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
