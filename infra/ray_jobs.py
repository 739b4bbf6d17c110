"""Ray jobs: one heavy stage is one Ray job, submitted, watched and stopped over the Ray Jobs REST API.

``python -m tasks.stages <stage> --spec <uri>`` runs as submission ``dora-<stage>-<digest12>-<attempt>``. Three situations on a start:
an attempt is still running → attach to it; the result is valid → nothing; else → the next attempt. Any interruption of the
watcher (Ctrl-C, Prefect's cancellation, a bug) stops the job, and the watcher returns only when the job is terminal.

A job that was killed from outside, or that went down with its head, is a fault of the machine and not of the stage: its error is
``retryable``, and another attempt resumes from the stage's finished parts. A stage's own error has its own ``retryable``.

A thin client over ``requests`` rather than Ray's ``JobSubmissionClient``: it has no time-outs (a hung head blocks it
forever), takes the token from the process's own environment only, and costs 1.5 s of imports against .2 s.

Cost of an empty job on 2 idle cores: 2 s from submission to RUNNING (Ray starts the supervisor's process), .2 s from its
end until the watcher notices. The driver's own imports come on top.

Left out: uploading code. The package must be installed where the head runs (a local head uses this interpreter).
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import urlsplit

import requests

from dora_core.errors import ServiceError, StageFailed
from infra.ray_head import JOB_STOP_SECONDS, auth_headers
from infra.store.json_files import StoredError

ACTIVE = frozenset({"PENDING", "RUNNING"})
LOG_SECONDS = 2.0
"""Least time between two reads of a log: the API returns all of it each time."""
SUBMISSION_SECONDS = 1.0
"""Ample time for the head to register a job whose submission was interrupted."""
STOP_PATIENCE = 10.0
"""Patience with a silent head when a job is to be stopped; shorter than while it runs."""

REPAIR = "`dora doctor` checks the services; `dora up` starts or repairs the local ones"
RESUME = "run the same command again: it resumes from what is finished"

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NOISE = re.compile(
    r"job_manager\.py:\d+ -- Runtime env is setting up"
    r"|^Running entrypoint for job "
    r"|worker\.py:\d+ -- (Using address|Connecting to existing Ray cluster|Connected to Ray cluster)"
    r"|^\s*$"
)
_ERROR_LINE = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*|\w+ failed: .*)")


class RayJob(TypedDict):
    """The fields read here of Ray's ``JobDetails``."""

    status: str
    message: NotRequired[str | None]
    error_type: NotRequired[str | None]
    driver_exit_code: NotRequired[int | None]


def _ignore(_: str) -> None:
    pass


class RayJobs:
    """Runs stages as jobs on one Ray cluster. Safe to share between threads.

    Args:
        dashboard_url: ``http://host:8265``, where the Jobs API is.
        environment: RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) if the head requires a token (:meth:`RayHead.environment`).
        python: interpreter on the head. Default: this one, right for a head on this machine; ``python`` elsewhere.
        entry_point: the module that runs a stage by its name.
        job_environment: environment variables of the jobs. Costs: Ray then cannot use its idle worker processes.
        log_folder: for the whole logs of failed jobs, since the logs of a local head are deleted with it.
        unreachable_seconds: silence of the head after which a stage fails.
        is_alive: whether the head's process runs, if that is known: requests are not repeated to a head that has ended.
    """

    def __init__(
        self,
        dashboard_url: str,
        environment: Mapping[str, str] = {},
        *,
        python: str = sys.executable,
        entry_point: str = "tasks.stages",
        job_environment: Mapping[str, str] = {},
        log_folder: Path | None = None,
        unreachable_seconds: float = 60.0,
        is_alive: Callable[[], bool] = lambda: True,
    ):
        self.dashboard_url = dashboard_url.rstrip("/")
        self._headers = auth_headers(environment)
        self._python, self._entry_point, self._job_environment = python, entry_point, dict(job_environment)
        self._log_folder, self._unreachable_seconds, self._is_alive = log_folder, unreachable_seconds, is_alive
        # A proxy set in the environment cannot reach loopback.
        self._trust_proxy = urlsplit(self.dashboard_url).hostname not in ("127.0.0.1", "localhost", "::1")
        self._running: set[str] = set()
        self._stopping = threading.Event()

    # -------------------------------------------------------------------------------------------------- run and stop

    def run(
        self,
        *,
        stage: str,
        digest: str,
        spec_uri: str,
        is_done: Callable[[], bool],
        on_log: Callable[[str], None] = _ignore,
        on_poll: Callable[[], None] = lambda: None,
        poll_seconds: float = 0.2,
        on_submitted: Callable[[str], None] = _ignore,
        read_error: Callable[[], StoredError | None] = lambda: None,
    ) -> str:
        """Run a stage's job to its end, see the module docstring; returns the submission id.

        Args:
            is_done: whether the stage's result is valid; called before a submission and after success.
            on_log: called with each new log line, without Ray's own messages.
            on_poll: called once per poll, e.g. to replay the stage's journal.
            on_submitted: called with the submission id as soon as it is known.
            read_error: content of the stage's ``error.json``, None if there is none.

        Raises:
            StageFailed: the job failed; the message is the stage's own error.
            ServiceError: the head refused the token or was silent for too long.
        """
        prefix = f"dora-{stage}-{digest[:12]}-"
        attempts = {int(job[len(prefix) :]): status for job, status in self._submissions(prefix).items() if job[len(prefix) :].isdigit()}
        latest = max(attempts, default=0)
        attached = attempts.get(latest) in ACTIVE
        if not attached and is_done():
            return f"{prefix}{latest}"
        submission_id = f"{prefix}{latest if attached else latest + 1}"
        error_before = read_error()
        log, accepted = _LogTail(on_log), attached
        try:
            self._running.add(submission_id)
            if not attached:
                command = f"{shlex.quote(self._python)} -P -m {self._entry_point} {stage} --spec {shlex.quote(spec_uri)}"
                self._submit(submission_id, command)
                accepted = True
            on_submitted(submission_id)
            job = self._watch(submission_id, log, on_poll, poll_seconds)
        except BaseException as error:
            try:
                if not accepted:  # interrupted within the request: the head may still be creating the job
                    time.sleep(SUBMISSION_SECONDS)
                self.stop(submission_id)
            except ServiceError as unreachable:
                error.add_note(f"and the job {submission_id} could not be stopped: {unreachable.message}")
            raise
        finally:
            self._running.discard(submission_id)
        if job["status"] == "SUCCEEDED" and is_done():
            return submission_id
        raise self._failure(stage, submission_id, job, log.text, error_before, read_error())

    def stop(self, submission_id: str, *, wait_seconds: float = JOB_STOP_SECONDS + 10) -> None:
        """Stop a job and wait until it is terminal; a no-op for one that has ended or is unknown.

        Raises:
            ServiceError: the head is unreachable, or the job is still not terminal after ``wait_seconds``.
        """
        deadline = time.monotonic() + wait_seconds
        requested = 0.0
        while (job := self._job(submission_id, patience=STOP_PATIENCE)) is not None and job["status"] in ACTIVE:
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"Ray job {submission_id} is still {job['status']} {wait_seconds:.0f} s after the request to stop",
                    hint=f"look at {self.url(submission_id)}; `dora down` ends the local head with all its jobs",
                )
            # Repeated: a request for a PENDING job has no effect before its supervisor exists.
            if time.monotonic() - requested > 3.0:
                self._request("POST", f"/api/jobs/{submission_id}/stop", allowed=(404, 500), patience=STOP_PATIENCE)
                requested = time.monotonic()
            time.sleep(0.2)

    def stop_all(self) -> None:
        """End every :meth:`run` of this object, in all threads, by stopping its job. For a flow's ``finally``: an interrupt reaches the
        main thread only."""
        self._stopping.set()
        for submission_id in sorted(self._running):
            self.stop(submission_id)

    def log(self, submission_id: str) -> str:
        """Return the log of a job without Ray's own lines; empty if this head has no such job.

        Raises:
            ServiceError: the head is unreachable.
        """
        if self._job(submission_id) is None:
            return ""
        lines = list[str]()
        _LogTail(lines.append).feed(self._log(submission_id), final=True)
        return "\n".join(lines)

    def url(self, submission_id: str) -> str:
        """Return the URL of the job's page in the Ray dashboard."""
        return f"{self.dashboard_url}/#/jobs/{submission_id}"

    # ------------------------------------------------------------------------------------------------------ mechanism

    def _submissions(self, prefix: str) -> dict[str, str]:
        """Return ``{submission id: status}`` of the cluster's jobs whose id starts with ``prefix``."""
        jobs = self._request("GET", "/api/jobs/").json()
        return {job["submission_id"]: job["status"] for job in jobs if (job.get("submission_id") or "").startswith(prefix)}

    def _job(self, submission_id: str, *, patience: float | None = None) -> RayJob | None:
        response = self._request("GET", f"/api/jobs/{submission_id}", allowed=(404,), patience=patience)
        found: RayJob | None = None if response.status_code == 404 else response.json()
        return found

    def _submit(self, submission_id: str, entrypoint: str) -> None:
        if self._stopping.is_set():
            raise StageFailed(f"job {submission_id} was not submitted: the run is being stopped")
        body: dict[str, Any] = {"submission_id": submission_id, "entrypoint": entrypoint, "entrypoint_num_cpus": 0}
        if self._job_environment:
            body["runtime_env"] = {"env_vars": self._job_environment}
        response = self._request("POST", "/api/jobs/", json=body, allowed=(400,), timeout=60)
        # 400 also means "exists": then an earlier attempt of this request arrived although its answer was lost.
        if response.status_code == 400 and self._job(submission_id) is None:
            reason = response.text.strip().splitlines()[-1]
            raise ServiceError(f"Ray refused job {submission_id}: {reason}", hint=f"entrypoint: {entrypoint}", retryable=False)

    def _watch(self, submission_id: str, log: _LogTail, on_poll: Callable[[], None], poll_seconds: float) -> RayJob:
        """Poll until the job is terminal; the end of the log is not the end of the job. Returns the job's last state."""
        next_log = 0.0
        while True:
            job = self._job(submission_id)
            if job is None:
                raise ServiceError(f"Ray has no job {submission_id} any more: its head was restarted", hint=RESUME)
            terminal = job["status"] not in ACTIVE
            started = time.monotonic()
            if terminal or started >= next_log:
                log.feed(self._log(submission_id), final=terminal)
                # A long log takes long to send: spend at most a fifth of the time on it.
                next_log = time.monotonic() + max(LOG_SECONDS, 4 * (time.monotonic() - started))
            on_poll()
            if terminal:
                return job
            time.sleep(poll_seconds)

    def _log(self, submission_id: str) -> str:
        response = self._request("GET", f"/api/jobs/{submission_id}/logs", allowed=(404, 500))
        return response.json()["logs"] if response.ok else ""

    def _request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        allowed: tuple[int, ...] = (),
        timeout: float = 15.0,
        patience: float | None = None,
    ) -> requests.Response:
        """Send one request, repeated with growing pauses while the head is silent or answers 5xx, for ``patience`` seconds at most
        (default: ``unreachable_seconds``). ``allowed`` statuses are returned, not raised."""
        patience = self._unreachable_seconds if patience is None else min(patience, self._unreachable_seconds)
        deadline, pause = time.monotonic() + patience, 0.2
        while True:
            try:
                with requests.Session() as session:
                    session.trust_env = self._trust_proxy
                    response = session.request(
                        method, self.dashboard_url + path, json=json, headers=self._headers, timeout=(5.0, timeout), allow_redirects=False
                    )
                if response.ok or response.status_code in allowed:
                    return response
                if response.status_code in (401, 403):
                    raise ServiceError(
                        f"Ray at {self.dashboard_url} refused our token ({response.status_code})",
                        hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token file",
                        retryable=False,
                    )
                reason = f"{response.status_code} {response.text.strip()[-300:]}"
                if response.status_code < 500:
                    raise ServiceError(f"Ray at {self.dashboard_url} answered {reason} to {method} {path}", retryable=False)
            except requests.RequestException as error:
                reason = f"{type(error).__name__}: {error}"
            if not self._is_alive():
                raise ServiceError(f"the Ray head at {self.dashboard_url} has ended ({reason})", hint=REPAIR)
            if time.monotonic() + pause > deadline:
                raise ServiceError(
                    f"Ray at {self.dashboard_url} has not answered for {patience:.0f} s ({reason})",
                    hint=REPAIR,
                )
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _failure(
        self, stage: str, submission_id: str, job: RayJob, log: str, before: StoredError | None, error: StoredError | None
    ) -> StageFailed:
        """Return the stage's own error if it could write one, else the cause of its end as far as it is known."""
        where = f"job log: {self._keep_log(submission_id, log)}"
        # An error.json that existed before the job counts only if this job's log contains the same message.
        if error is not None and (error != before or error["message"].splitlines()[0] in log):
            hint = "\n".join(filter(None, [error.get("hint"), where]))
            return StageFailed(f"stage {stage}: {error['message']}", hint=hint, retryable=bool(error.get("retryable")))
        tail = "\n".join(log.splitlines()[-15:])
        killed = _killed_from_outside(job)
        hints = [RESUME] if killed else []
        hints += [where, *([f"its last lines:\n{tail}"] if tail else [])]
        return StageFailed(f"stage {stage}: {_cause_of_death(job, log)}", hint="\n".join(hints), retryable=killed)

    def _keep_log(self, submission_id: str, log: str) -> str:
        if self._log_folder is None:
            return self.url(submission_id)
        path = self._log_folder / f"{submission_id}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log, encoding="utf-8")
        return str(path)


def _signal_of(job: RayJob) -> int | None:
    """Return the signal that ended a job's process, None if it exited by itself. A shell reports a child's signal n as 128 + n."""
    code = job.get("driver_exit_code")
    return None if code is None else -code if code < 0 else code - 128 if code > 128 else None


def _killed_from_outside(job: RayJob) -> bool:
    """Whether its end came from outside: the kernel (out of memory), a person, the machine's shutdown, the death of Ray's supervisor.
    A crash in native code (SIGSEGV, SIGABRT) is the job's own error."""
    supervisor_died = (job.get("error_type") or "").startswith("JOB_SUPERVISOR_ACTOR")
    return job["status"] == "FAILED" and (supervisor_died or _signal_of(job) in (signal.SIGKILL, signal.SIGTERM))


def _cause_of_death(job: RayJob, log: str) -> str:
    """Describe the end of a job without ``error.json`` in one sentence: stopped, killed, without a result, or its last error line."""
    code, message = job.get("driver_exit_code"), (job.get("message") or "").strip()
    if job["status"] == "SUCCEEDED":
        return "the job succeeded but left no valid result"
    if job["status"] == "STOPPED":
        return "the job was stopped"
    lines = [line for line in log.splitlines() if _ERROR_LINE.match(line)]
    number = _signal_of(job)
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV):
        name = signal.Signals(number).name
        return f"its process was killed by {name}" + (" (out of memory is the usual cause)" if number == signal.SIGKILL else "")
    if "OutOfMemory" in message or "OOM" in message:
        return f"out of memory: {message.splitlines()[0]}"
    if lines:
        return lines[-1]
    return message.splitlines()[0] if message else f"the job ended with exit code {code}"


class _LogTail:
    """Splits the growing text of a log into new, clean lines. ``text`` holds the clean lines so far."""

    def __init__(self, on_line: Callable[[str], None]):
        self._on_line, self._offset, self._lines = on_line, 0, list[str]()

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def feed(self, whole: str, *, final: bool) -> None:
        end = len(whole) if final else whole.rfind("\n") + 1
        new, self._offset = whole[self._offset : end], max(end, self._offset)
        for line in new.split("\n"):
            # Only the last state of a progress bar, which redraws itself with carriage returns, is new.
            line = _ANSI.sub("", line.rstrip("\r").rsplit("\r", 1)[-1])
            if not _NOISE.search(line):
                self._lines.append(line)
                self._on_line(line)
