"""Spec of a stage: its parameters, the digest over them, and references to the stages that it reads.

Same digest ⇒ same output, so a finished digest is never computed again. Fields marked ``NotInDigest`` change how a stage runs and not its
output.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig
from dora_core.strict_model import StrictModel
from infra.store.store import Store, sha256_of

DIGEST_PATTERN = r"^[0-9a-f]{64}$"


class _NotInDigest:
    """Marker: this field changes how a stage runs, not its output."""


NotInDigest = _NotInDigest()
Execute = Annotated[Execution, NotInDigest]


class StageRef(StrictModel):
    """Points at another stage's output by content, never by path."""

    stage: str
    digest: str = Field(pattern=DIGEST_PATTERN)


def _source_kind(value: object) -> str:
    return "StageRef" if isinstance(value, StageRef) or (isinstance(value, dict) and "digest" in value) else "ModelConfig"


ModelSource = Annotated[Annotated[StageRef, Tag("StageRef")] | Annotated[ModelConfig, Tag("ModelConfig")], Discriminator(_source_kind)]
"""A model: by name, or the stage that trained it. The discriminator keeps messages about one of them free of the other's fields."""


def local_model(source: ModelSource, store_uri: str) -> ModelConfig | Path:
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
