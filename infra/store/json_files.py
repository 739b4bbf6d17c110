"""Contents of the JSON files that a stage leaves in its folder: types for readers. ``tasks/runtime/stage.py`` writes them.

They are read as they are, without validation: a result of an earlier release may lack a key. Typed facts:
:func:`tasks.runtime.descriptor.read_result`, through :func:`parsed`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from dora_core.errors import StoreError

M = TypeVar("M", bound=BaseModel)


class Result(TypedDict):
    """A stage's result, before the store adds its files.

    Attributes:
        spec: the values that the digest covers.
        inputs: ``{"stage", "digest"}`` by field of the spec.
        rows: rows written.
        metrics: finite numbers by name.
        facts: JSON of the stage's ``Facts``.
        started: epoch seconds.
        seconds: duration.
        python: version.
        memory: largest peak of one of its processes, bytes; absent where none was measured.
    """

    stage: str
    digest: str
    spec: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    rows: int
    metrics: dict[str, float]
    facts: dict[str, Any]
    started: float
    seconds: float
    python: str
    memory: NotRequired[int]


class FileFacts(TypedDict):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


class StoredResult(Result):
    """``result.json``.

    Attributes:
        files: the output, by path below the stage's folder.
    """

    files: dict[str, FileFacts]


class StoredError(TypedDict):
    """``error.json``.

    Attributes:
        type: name of the exception's class.
        traceback: of an exception that is not a :class:`dora_core.errors.DoraError`.
    """

    type: str
    message: str
    hint: str
    retryable: bool
    traceback: NotRequired[str]


def parsed(model: type[M], content: Any, place: str) -> M:
    """Validate the content of a file.

    Args:
        place: of the file in the store, for the message.

    Raises:
        StoreError: it does not have this release's form. A file of the release before has: ``tests/test_releases.py``.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{place} was written by another release of DoRA Realign, or changed by hand: {where}: {first['msg']}",
            hint="read it with the release that wrote it or a later one; if its run is not needed any more, delete its folder",
        ) from error
