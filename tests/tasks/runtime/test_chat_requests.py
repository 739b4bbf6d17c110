"""Asking a server: a real one on loopback, which answers, hesitates, refuses, dies and comes back."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from dora_core.config.execution import Endpoint
from dora_core.errors import ConfigError, ServiceError
from infra.chat_client import Question, retry_after_seconds
from infra.store.journal import JournalReader, JournalWriter
from infra.store.store import Store
from tasks.runtime import chat_requests as asking
from tasks.runtime.chat_requests import Asked, ask, backoff_seconds
from tasks.runtime.stage import StageContext
from tests.endpoint_server import MODEL, EndpointServer, Reply

DIGEST, CANARY = "e" * 64, "sk-canary-5f1e5a17"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits; and whatever a test does to the server, no thread stays."""
    monkeypatch.setattr(asking, "BACKOFF_SECONDS", (0.02, 0.1))
    yield
    for thread in threading.enumerate():
        if thread.name == "endpoint":
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def context_in(store: Store) -> StageContext:
    folder = store.folder("generate", DIGEST)
    return StageContext(store, folder, JournalWriter(folder), logging.getLogger("dora.generate"))


def questions(count: int) -> list[Question]:
    return [
        Question(f"record r{i}", {"model": MODEL, "messages": [{"role": "user", "content": f"question {i}"}], "seed": i})
        for i in range(count)
    ]


def asked_of(server: EndpointServer) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.bodies]


def echo(body: dict[str, Any]) -> Reply:
    return Reply(f"answer to {body['messages'][-1]['content']}", tokens=3)


def ask_in(store: Store, url: str, count: int, **settings: Any) -> Asked:
    return ask(context_in(store), Endpoint(url=url, **({"give_up_seconds": 20.0} | settings)), questions(count), count, unit="answers")


# ------------------------------------------------------------------------------------------------------------------ asking


def test_answers_come_in_the_order_of_the_questions(store: Store) -> None:
    replies = {
        "question 0": Reply("héllo \ud83d", tokens=7),
        "question 1": Reply("cut", finish_reason="length"),
        "question 2": Reply(None, tokens=0),
    }
    with EndpointServer(lambda body: replies[body["messages"][0]["content"]]) as server:
        result = ask_in(store, server.url + "/", 3, max_without_text=0.5)
        assert server.authorizations == [None] * 3
    assert [(a.text, a.tokens, a.finished) for a in result.answers] == [("héllo ?", 7, True), ("cut", None, False), ("", 0, True)]
    assert (result.facts.requests, result.facts.retries, result.facts.reused) == (3, 0, 0)
    assert result.facts.answers_per_second > 0
    events = list(JournalReader(store, "generate", DIGEST).new_events())
    assert (events[-1]["done"], events[-1]["total"], events[-1]["unit"]) == (3, 3, "answers")


def test_equal_requests_are_sent_once(store: Store) -> None:
    with EndpointServer(echo) as server:
        result = ask(context_in(store), Endpoint(url=server.url), [*questions(2), *questions(2)], 4, unit="answers")
        assert len(server.bodies) == 2
    assert [a.text for a in result.answers] == ["answer to question 0", "answer to question 1"] * 2


def test_as_many_requests_as_allowed_are_under_way_and_no_more(store: Store) -> None:
    """Every answer waits for three more requests: fewer at once would never end."""
    four = threading.Barrier(4)

    def together(body: dict[str, Any]) -> Reply:
        four.wait(timeout=20)
        return echo(body)

    with EndpointServer(together) as server:
        ask_in(store, server.url, 20, concurrency=4)
        assert server.most_at_once == 4


# ----------------------------------------------------------------------------------------------------------------- failures


def test_what_may_pass_is_tried_again(store: Store) -> None:
    """Each question meets every such failure once: busy, broken, no connection, and a success that is none."""
    failures = [Reply("slow down", 429, headers={"Retry-After": "0"}), Reply("oops", 500), Reply("loading", 503), Reply("late", 408)]
    seen, lock = Counter[str](), threading.Lock()

    def moody(body: dict[str, Any]) -> Reply:
        content = body["messages"][0]["content"]
        with lock:
            seen[content] += 1
        if seen[content] <= len(failures):
            return failures[seen[content] - 1]
        if seen[content] == len(failures) + 1:
            raise ConnectionError("closed without an answer")
        return echo(body)

    with EndpointServer(moody) as server:
        result = ask_in(store, server.url, 3, concurrency=2)
    assert [a.text for a in result.answers] == [f"answer to question {i}" for i in range(3)]
    assert set(seen.values()) == {6}
    assert (result.facts.requests, result.facts.retries) == (18, 15)


def test_the_wait_grows_and_respects_what_the_server_asks() -> None:
    waits = [backoff_seconds(number, longest=30.0) for number in (0, 3, 2000)]
    assert all(half <= wait <= 2 * half for wait, half in zip(waits, (0.01, 0.08, 15.0), strict=True))
    until, now = (formatdate(seconds, usegmt=True) for seconds in (4060, 4000))  # the server's clock is in 1970
    assert retry_after_seconds({"Retry-After": until, "Date": now}) == 60.0 and retry_after_seconds({"Retry-After": until}) == 0.0
    values = ("7", "soon", "", "-1", "nan", "inf")
    assert [retry_after_seconds({"Retry-After": value}) for value in values] == [7.0, 0.0, 0.0, 0.0, 0.0, 3600.0]


@pytest.mark.parametrize(
    ("reply", "message", "hint"),
    [
        (Reply("bad key", 401), "refuses record r0: 401 bad key", "endpoint.api_key_env"),
        (Reply("no such model", 404), "refuses record r0: 404 no such model", "did you mean 'served'? allowed: other, served"),
        (
            Reply("context is 2048 tokens", 400),
            "refuses record r0: 400 context is 2048 tokens",
            "do prompt and new tokens exceed the context of the served model",
        ),
        (Reply("", 301, headers={"Location": "https://new/v1"}), "refuses record r0: 301", "redirects to https://new/v1"),
    ],
)
def test_what_would_come_again_fails_at_once(store: Store, reply: Reply, message: str, hint: str) -> None:
    with EndpointServer(lambda _: reply, models=("served", "other")) as server, pytest.raises(ConfigError) as error:
        ask_in(store, server.url, 5, concurrency=1)
    assert len(server.bodies) == 1
    assert message in error.value.message and hint in error.value.hint


def test_the_wrong_path_is_named(store: Store) -> None:
    with EndpointServer(echo) as server, pytest.raises(ConfigError) as error:
        ask_in(store, server.url.removesuffix("/v1"), 1)
    assert "404 Not Found" in error.value.message and "with /v1" in error.value.hint
    assert error.value.hint.startswith("0 of 1 answers are kept")


def test_an_unreachable_endpoint_fails_with_the_cause(store: Store) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServiceError) as error:
            ask_in(store, url, 3, give_up_seconds=0.5)
    assert error.value.message == f"the endpoint {url} has answered nothing for 0.5 s: Connection refused"
    assert error.value.hint.startswith("0 of 3 answers are kept; start the server")
    assert not error.value.retryable


def test_a_silent_server_fails_too_and_its_threads_do_not_hold_the_stage(store: Store) -> None:
    released = threading.Event()

    def silent(_: dict[str, Any]) -> str:
        released.wait(30)
        return "late"

    with EndpointServer(silent) as server:
        with pytest.raises(ServiceError, match="requests are under way, and none is answered"):
            ask_in(store, server.url, 3, give_up_seconds=0.5)
        with pytest.raises(ServiceError, match=r"no answer within 0\.2 s"):
            ask_in(store, server.url, 3, give_up_seconds=0.7, timeout_seconds=0.2)
        released.set()


# ------------------------------------------------------------------------------------------------------- answers without text


def without(reason: str, **message: Any) -> Reply:
    """Answer 200 without a text, as a reasoning parser, a filter or a tool call leaves it."""

    class Silent(Reply):
        def json(self) -> dict[str, Any]:
            answer = super().json()
            answer["choices"][0]["message"] |= message
            return answer

    return Silent(None, finish_reason=reason)


def test_answers_without_text_are_counted_by_their_reason_and_asked_for_again(store: Store) -> None:
    """1 of 2 is more than 0.1: an error that keeps the other; then 1 of 20 is not, and the facts count it."""
    silent = without("length", reasoning_content="still thinking")
    with EndpointServer(lambda body: silent if body["seed"] == 1 else echo(body)) as server:
        with pytest.raises(ServiceError) as error:
            ask_in(store, server.url, 2)
        assert "1 of 2 answers" in error.value.message and "finish reason: length, reasoning 1" in error.value.message
        assert error.value.hint.startswith("1 of 2 answers are kept") and "max_new_tokens" in error.value.hint
        context = context_in(store)
        result = ask(context, Endpoint(url=server.url), questions(20), 20, unit="answers")
        assert result.facts.without_text == {"length, reasoning": 1} and result.facts.reused == 1
        assert "1 of 20 answers" in context.warnings[0] and "have no text (length, reasoning 1)" in context.warnings[0]
    assert asked_of(server).count("question 1") == 2, "not kept, so asked for again"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (without("content_filter"), "content_filter"),
        (without("stop", refusal="I cannot"), "stop, refusal"),
        (without("tool_calls", tool_calls=[{"id": "1"}]), "tool_calls, tool call"),
        (Reply(""), "stop"),
    ],
)
def test_nothing_but_answers_without_text_is_an_error_before_all_are_requested(store: Store, reply: Reply, reason: str) -> None:
    with EndpointServer(lambda _: reply) as server, pytest.raises(ServiceError) as error:
        ask_in(store, server.url, 1000, concurrency=4)
    assert f"have no text (finish reason: {reason} " in error.value.message and not error.value.retryable
    assert len(server.bodies) < 100, "no use in requesting all of them"
    assert not any(path.read_bytes() for path in (context_in(store).scratch / "answers").iterdir())


def test_an_answer_without_text_that_an_earlier_release_kept_is_asked_for_again(store: Store) -> None:
    log = context_in(store).scratch / "answers"
    log.mkdir(parents=True)
    key = asking.sha256_of(questions(1)[0].body)
    (log / "1.jsonl").write_text(f'["{key}", {{"text": "", "tokens": 9, "finished": true}}]\n')
    with EndpointServer(echo) as server:
        assert ask_in(store, server.url, 1).answers[0].text == "answer to question 0"


def test_answers_carry_their_server_and_several_are_a_warning(store: Store) -> None:
    with EndpointServer(echo) as one:
        ask_in(store, one.url, 2)
    with EndpointServer(echo) as two:
        context = context_in(store)
        result = ask(context, Endpoint(url=two.url), questions(3), 3, unit="answers")
    assert result.facts.origins == {f"{one.url} {MODEL}": 2, f"{two.url} {MODEL}": 1}
    assert context.warnings[0].startswith("the answers come from several servers: ")


# ------------------------------------------------------------------------------------------------------------------- resume


def test_a_server_that_dies_is_asked_for_the_rest_when_it_is_back(store: Store) -> None:
    died = threading.Event()

    def dying(body: dict[str, Any]) -> Reply:
        if len(server.bodies) > 12:
            died.set()
            raise ConnectionError
        return echo(body)

    server = EndpointServer(dying)
    threading.Thread(target=lambda: died.wait(20) and server.close(), daemon=True).start()
    with pytest.raises(ServiceError) as error:
        ask_in(store, server.url, 30, concurrency=3, give_up_seconds=1.0)
    assert "Connection refused" in error.value.message
    kept = int(error.value.hint.split(" of 30 answers are kept")[0])
    assert 9 <= kept <= 12, "all but what was under way"

    with EndpointServer(echo, port=server.port) as back:
        result = ask_in(store, back.url, 30)
        assert len(set(asked_of(back))) == len(back.bodies) == 30 - kept
    assert [a.text for a in result.answers] == [f"answer to question {i}" for i in range(30)]
    assert result.facts.reused == kept


def test_a_torn_last_line_is_asked_again(store: Store) -> None:
    with EndpointServer(echo) as server:
        ask_in(store, server.url, 6, concurrency=1)
        (log,) = (context_in(store).scratch / "answers").iterdir()
        log.write_bytes(log.read_bytes()[:-5])
        again = ask_in(store, server.url, 6)
        assert asked_of(server) == [*(f"question {i}" for i in range(6)), "question 5"]
    assert [a.text for a in again.answers] == [f"answer to question {i}" for i in range(6)]


def test_another_machine_finds_the_answers_in_a_remote_store(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()

    def on_machine(name: str) -> Store:
        store = Store(str(tmp_path / name))
        store.remote = (pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "")
        return store

    def four(body: dict[str, Any]) -> Reply:
        return echo(body) if body["seed"] < 4 else Reply("no", 400)

    with EndpointServer(four) as server, pytest.raises(ConfigError):
        ask_in(on_machine("one"), server.url, 8, concurrency=1)
    with EndpointServer(echo) as server:
        result = ask_in(on_machine("two"), server.url, 8)
        assert sorted(asked_of(server)) == [f"question {i}" for i in range(4, 8)]
    assert result.facts.reused == 4


# ---------------------------------------------------------------------------------------------------------------------- key


def test_the_key_is_sent_and_written_nowhere(store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{CANARY}\n")
    refused = Reply(f"incorrect key {CANARY}", 401)
    trouble = Reply(f"{CANARY} has no quota", 500)
    replies = iter([trouble, Reply("fine"), refused])
    caplog.set_level(logging.DEBUG)
    with EndpointServer(lambda _: next(replies)) as server, pytest.raises(ConfigError) as error:
        ask_in(store, server.url, 2, api_key_env="JUDGE_KEY", concurrency=1)
    assert server.authorizations == [f"Bearer {CANARY}"] * 3
    assert error.value.message.endswith("401 incorrect key ***") and "JUDGE_KEY" in error.value.hint
    assert "*** has no quota" in caplog.text
    written = b"".join(path.read_bytes() for path in store.local_root.rglob("*") if path.is_file())
    assert b"fine" in written
    assert CANARY not in caplog.text + str(error.value.to_json()) + written.decode()


@pytest.mark.parametrize(("value", "message"), [("", "JUDGE_KEY is not set"), ("two words", "an HTTP header cannot carry")])
def test_a_key_that_is_missing_or_broken_is_said_before_anything_is_sent(
    store: Store, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with EndpointServer(echo) as server, pytest.raises(ConfigError, match=message) as error:
        ask_in(store, server.url, 1, api_key_env="JUDGE_KEY")
    assert server.bodies == [] and "two words" not in str(error.value)
