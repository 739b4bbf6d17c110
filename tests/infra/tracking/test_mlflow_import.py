"""MLflow imported by several threads at once."""

from __future__ import annotations

import subprocess
import sys

THREADS = """
import threading
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.mlflow_import import load_mlflow
from infra.tracking.system_metrics import monitors

failed = []
threading.excepthook = lambda args: failed.append(repr(args.exc_value))
ready = threading.Barrier(4)

def run(use):
    ready.wait()
    use()

uses = [load_mlflow, monitors, monitors, lambda: mlflow_client("sqlite:///:memory:")]
threads = [threading.Thread(target=run, args=[use]) for use in uses]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


def test_threads_that_need_it_at_once_all_get_it() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
