"""One import of MLflow at a time.

The tracker's thread, the watcher of the machine's load and the run itself use MLflow, and import it late, as it takes seconds. Two threads
that import parts of it at once end in ``_DeadlockError`` and "partially initialized module": its packages import one another in circles.
"""

from __future__ import annotations

import threading

_LOCK = threading.Lock()


def load_mlflow() -> None:
    """Import MLflow, once per process; a second thread waits. Call it before the first import from ``mlflow`` in whatever a thread runs."""
    with _LOCK:
        import mlflow  # noqa: F401  # with the parts that import one another
