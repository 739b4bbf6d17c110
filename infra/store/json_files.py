"""Contents of the JSON files that a stage leaves in its folder: types for readers. ``tasks/runtime/stage.py`` writes them.

They are read as they are, without validation: a result of an earlier release may lack a key. Typed facts:
:func:`tasks.runtime.descriptor.read_result`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


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
