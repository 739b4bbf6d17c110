"""Chat requests to an OpenAI-compatible server: concurrent, with every answer kept and no request repeated after its answer.

Answers are appended to ``scratch/answers/<time>-<process>.jsonl``, one line each under the sha256 of its request, and synced to disk before
they count. Every process writes a separate file, a partially written last line is ignored, and finished files are committed to a remote
store every :data:`COMMIT_SECONDS` and at the end, also after an error. So a stage that was killed, or whose server went away, requests only
the rest. An answer without a text (reasoning used up the tokens, a refusal, a filter, a tool call) is no answer: it is counted by its
finish reason and not kept. Kept answers carry their server (address, model, version where it is told), which is not in the digest.

Failure policy: transient failures (``infra/chat_client.py``) are retried with exponential backoff and jitter, and never before
``Retry-After``, until no request at all was answered for ``give_up_seconds``; permanent ones fail at once.

Cost: one thread per request under way, less than a millisecond of processor time per answer. Memory: all answers. Left out: streaming,
and the server's ``n`` (several answers per request, which many servers ignore).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeVar

import requests

from dora_core.config.execution import Endpoint
from dora_core.errors import DoraError, ServiceError
from infra.chat_client import Answer, ChatServer, Question, Trouble
from infra.store.store import sha256_of
from tasks.runtime.facts import RequestFacts
from tasks.runtime.stage import StageContext

T = TypeVar("T")

COMMIT_SECONDS = 30.0
"""Interval of commits to a remote store: a lost machine costs at most the answers of this time."""
BACKOFF_SECONDS = (0.5, 30.0)
"""First and longest wait before a request is sent again."""
PROGRESS_SECONDS = 0.5
WARN_SECONDS = 30.0
"""Least time between two warnings that requests fail."""
SILENT_FROM_THE_START = 64
"""Answers without text, and none with, after which no more are requested."""
MOST_ORIGINS = 20
UNANSWERED = "requests are under way, and none is answered"


@dataclass(frozen=True)
class Asked:
    """Answers in the order of the questions."""

    answers: list[Answer]
    facts: RequestFacts


def ask(context: StageContext, endpoint: Endpoint, questions: Iterable[Question], total: int, *, unit: str) -> Asked:
    """Return the answers to all ``questions``; answers of an earlier attempt are reused.

    Args:
        questions: consumed as requests are sent, so they may be generated lazily.
        total: number of questions, for the progress bar.
        unit: name of an answer in the progress bar.

    Raises:
        ServiceError: no request was answered for ``endpoint.give_up_seconds``; or a larger share than ``endpoint.max_without_text`` of the
            answers has no text.
        ConfigError: the key is missing, or the server refuses it, the model or a request.
    """
    started, shown = time.monotonic(), float("-inf")
    log = AnswerLog(context)
    answers, silent = log.read(), 0
    workers = _Workers(endpoint, min(endpoint.concurrency, total), context.log)
    coming, keys, sent = iter(questions), list[str](), set[str]()
    try:
        while True:
            while workers.open < 2 * endpoint.concurrency and (question := next(coming, None)) is not None:
                keys.append(key := sha256_of(question.body))
                if key not in answers and key not in sent:
                    sent.add(key)
                    workers.put(key, question)
            if not workers.open:
                break
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                context.progress(len(keys) - workers.open, total, unit, f"{workers.retries} retries" if workers.retries else "")
            new = workers.wait()
            log.append(new)
            answers |= new
            silent += sum(not answer.text for answer in new.values())
            if silent >= SILENT_FROM_THE_START and silent == len(answers):
                raise _without_text(endpoint, list(answers.values()), total)
        given = [answers[key] for key in keys]
        without = Counter(answer.reason for answer in given if not answer.text)
        if given and without.total() > endpoint.max_without_text * len(given):
            raise _without_text(endpoint, given, total)
    except DoraError as error:
        answers |= (new := workers.stop())
        log.append(new)
        error.hint = f"{sum(bool(answer.text) for answer in answers.values())} of {total} answers are kept; {error.hint}"
        raise
    finally:
        log.append(workers.stop())
        log.close()
    context.progress(total, total, unit)
    origins = Counter(answer.origin or "unknown" for answer in given)
    if without:
        context.warn(f"{without.total()} of {len(given)} answers of {endpoint.url} have no text ({_counted(without)}): they count as empty")
    if len({origin.split(" ")[0] for origin in origins}) > 1:
        context.warn(f"the answers come from several servers: {_counted(origins)}")
    facts = RequestFacts(
        requests=len(sent) + workers.retries,
        retries=workers.retries,
        reused=len(set(keys) - sent),
        answers_per_second=len(sent) / (time.monotonic() - started) if sent else None,
        without_text=dict(without),
        origins=dict(origins.most_common(MOST_ORIGINS)),
    )
    return Asked(given, facts)


def _without_text(endpoint: Endpoint, answers: list[Answer], total: int) -> ServiceError:
    reasons = Counter(answer.reason for answer in answers if not answer.text)
    return ServiceError(
        f"{reasons.total()} of {len(answers)} answers of the endpoint {endpoint.url} have no text (finish reason: {_counted(reasons)}); "
        f"{total} are wanted",
        hint="length or reasoning: raise max_new_tokens, or switch the model's thinking off at the server; a refusal, a filter or a tool "
        "call: change prompts or model. Run the same command again: it asks for those and the rest. A larger share is accepted with "
        "endpoint.max_without_text",
        retryable=False,
    )


def _counted(numbers: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in numbers.most_common(5))


class AnswerLog:
    """Answers of all attempts, by key; see the module docstring."""

    def __init__(self, context: StageContext):
        self._context, self._folder = context, context.scratch / "answers"
        self._folder.mkdir(exist_ok=True)
        self._file: IO[bytes] | None = None
        self._committed = time.monotonic()

    def read(self) -> dict[str, Answer]:
        """Read all complete lines of this machine's and the store's files; of two answers under one key the first counts."""
        store, relative = self._context.store, self._folder.relative_to(self._context.store.local_root).as_posix()
        answers: dict[str, Answer] = {}
        for name in sorted({path.name for path in self._folder.iterdir()} | set(store.list(relative))):
            if not (self._folder / name).exists():
                store.download(f"{relative}/{name}")
            for line in (self._folder / name).read_bytes().splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    continue  # torn by a crash
                if answer["text"]:  # earlier releases kept answers without text, too
                    answers.setdefault(key, Answer(**answer))
        return answers

    def append(self, answers: dict[str, Answer]) -> None:
        """Append the answers with a text durably."""
        answers = {key: answer for key, answer in answers.items() if answer.text}
        if not answers:
            return
        if self._file is None:
            self._file = (self._folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl").open("xb")
        self._file.writelines(json.dumps([key, asdict(answer)]).encode() + b"\n" for key, answer in answers.items())
        self._file.flush()
        os.fsync(self._file.fileno())
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.close()

    def close(self) -> None:
        """Commit the current file; the next answer begins another."""
        self._committed = time.monotonic()
        if self._file is not None:
            self._file.close()
            self._context.folder.commit(Path(self._file.name).relative_to(self._context.path).as_posix())
            self._file = None


class _Workers:
    """``count`` threads that send requests. The first one checks that the server is there, and then starts the others.

    They are daemons, since a request cannot be interrupted: a process that ends does not wait for them; otherwise each ends with its
    request.

    Attributes:
        open: questions whose answers were not taken yet. retries: requests that failed and were sent again.
    """

    def __init__(self, endpoint: Endpoint, count: int, log: logging.Logger):
        self.open = self.retries = 0
        self._server, self._endpoint, self._count, self._log = ChatServer(endpoint), endpoint, count, log
        self._todo: queue.SimpleQueue[tuple[str, Question] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[str, Answer] | None] = queue.SimpleQueue()
        self._started, self._stopped, self._lock = False, threading.Event(), threading.Lock()
        self._fault: Exception | None = None
        self._last_event, self._trouble, self._warned = time.monotonic(), UNANSWERED, float("-inf")

    def put(self, key: str, question: Question) -> None:
        self.open += 1
        self._todo.put((key, question))
        if not self._started:
            self._started, self._last_event = True, time.monotonic()
            self._start(self._open_up)

    def wait(self) -> dict[str, Answer]:
        """Wait for the next answers, by key; empty when another event ended the wait.

        Raises:
            ServiceError: no event for ``give_up_seconds``. ConfigError: a request was refused.
        """
        if self._fault is not None:
            raise self._fault
        patience = self._endpoint.give_up_seconds
        try:
            first = self._news.get(timeout=max(0.0, self._last_event + patience - time.monotonic()))
        except queue.Empty:
            raise ServiceError(
                f"the endpoint {self._endpoint.url} has answered nothing for {patience:g} s: {self._trouble}",
                hint="start the server or correct endpoint.url, and run the same command again: it requests only the rest. "
                "endpoint.give_up_seconds is the longest wait for a silent server",
                retryable=False,  # it was retried until here
            ) from None
        self._last_event, self._trouble = time.monotonic(), UNANSWERED
        return self._taken([first])

    def stop(self) -> dict[str, Answer]:
        """End the threads; returns the answers that were not taken yet."""
        self._stopped.set()
        self._todo.put(None)
        return self._taken([])

    def _taken(self, news: list[tuple[str, Answer] | None]) -> dict[str, Answer]:
        while not self._news.empty():  # only this thread takes
            news.append(self._news.get())
        answers = dict(item for item in news if item is not None)
        self.open -= len(answers)
        return answers

    def _start(self, work: Callable[[requests.Session], None]) -> None:
        def run() -> None:
            try:
                with self._server.session() as session:
                    work(session)
            except Exception as error:
                self._fault = error
                self._news.put(None)

        threading.Thread(target=run, daemon=True, name="endpoint").start()

    def _open_up(self, session: requests.Session) -> None:
        if self._persistently(lambda: self._server.look(session)) is None:
            return
        self._news.put(None)
        for _ in range(self._count - 1):
            self._start(self._answer_all)
        self._answer_all(session)

    def _answer_all(self, session: requests.Session) -> None:
        while (item := self._todo.get()) is not None and not self._stopped.is_set():
            key, question = item
            answer = self._persistently(functools.partial(self._server.answer, session, question))
            if answer is not None:
                self._news.put((key, answer))
        self._todo.put(None)  # for the next thread

    def _persistently(self, attempt: Callable[[], T]) -> T | None:
        """Return the result of the first attempt without :class:`Trouble`; None if stopped before."""
        longest = min(BACKOFF_SECONDS[1], self._endpoint.give_up_seconds / 4)  # a single failure never ends the step
        number = 0
        while True:
            try:
                return attempt()
            except Trouble as trouble:
                self._note(trouble.cause)
                if self._stopped.wait(max(backoff_seconds(number, longest), trouble.retry_after)):
                    return None
            number += 1

    def _note(self, cause: str) -> None:
        with self._lock:
            self.retries, self._trouble = self.retries + 1, cause
            if time.monotonic() - self._warned > WARN_SECONDS:
                self._warned = time.monotonic()
                self._log.warning("endpoint %s: %s; trying again (%d requests failed so far)", self._endpoint.url, cause, self.retries)


def backoff_seconds(number: int, longest: float) -> float:
    """Return the wait after ``number`` (from 0) failures in a row: doubled each time up to ``longest``, a random half of it taken off."""
    return min(longest, BACKOFF_SECONDS[0] * 2.0 ** min(number, 16)) * random.uniform(0.5, 1.0)
