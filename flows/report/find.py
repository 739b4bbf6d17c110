"""Find the run to report on, from a query on the command line."""

from __future__ import annotations

from dora_core.errors import DoraError, did_you_mean
from flows.run_record import RunRecord, read_record, read_records
from infra.store.store import Store


class ReportError(DoraError):
    """A run that cannot be reported on."""


def find_run(store: Store, query: str) -> str:
    """Return the run id for ``latest``, a unique beginning of an id, or a path to the run's folder or its ``run.json``.

    Raises:
        ReportError: no run matches, or several do; the hint lists them.
    """
    records = {run.run_id: run for run in read_records(store)}
    runs = sorted(records)
    if not runs:
        raise ReportError(
            f"there are no runs in {store.uri}", hint="start one with `dora realign -c FILE` or `dora demo`, or set DORA_STORE"
        )
    if query == "latest":
        return max(runs, key=lambda name: records[name].started)
    wanted = query.rstrip("/").removesuffix("/run.json").rsplit("/", 1)[-1]
    found = [name for name in runs if name == wanted] or [name for name in runs if name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ReportError(f"{query!r} is the beginning of {len(found)} runs", hint=f"give more of the id: {', '.join(found)}")
    raise ReportError(f"there is no run {query!r} in {store.uri}", hint=did_you_mean(wanted, ["latest", *runs]))


def manifest_of(store: Store, run_id: str) -> RunRecord:
    """Return the run's manifest.

    Raises:
        ReportError: the run has none.
    """
    run = read_record(store, run_id)
    if run is None:
        raise ReportError(f"run {run_id!r} has no manifest in {store.uri}", hint="list the runs with a wrong id: `dora report x`")
    return run
