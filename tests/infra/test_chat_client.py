"""One request to a real server on loopback: answers, transient failures, refusals with a remedy, and the key."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import requests

from dora_core.config.execution import Endpoint
from dora_core.errors import ConfigError
from infra.chat_client import Answer, ChatServer, Question, Trouble
from tests.endpoint_server import MODEL, EndpointServer, Reply

KEY = "sk-canary-0123456789"


def question(model: str = MODEL) -> Question:
    return Question("record r7, sample 2", {"model": model, "messages": [{"role": "user", "content": "hello"}]})


def send(reply: Any, model: str = MODEL, **settings: Any) -> tuple[Answer, EndpointServer]:
    with EndpointServer(lambda _: reply) as server:
        client = ChatServer(Endpoint(url=server.url, **settings))
        with client.session() as session:
            return client.answer(session, question(model)), server


def test_an_answer_with_its_tokens_and_whether_it_was_cut() -> None:
    assert send(Reply("hi", tokens=3))[0] == Answer("hi", 3, True)
    assert send(Reply("cut of", finish_reason="length"))[0] == Answer("cut of", None, False)
    assert send(Reply(None))[0].text == "", "a server may answer with nothing"
    assert send(Reply("half \ud83d"))[0].text == "half ?", "JSON can hold half a surrogate pair, Parquet cannot"


def test_an_answer_names_its_server_and_what_came_instead_of_a_text() -> None:
    class Told(Reply):
        def json(self) -> dict[str, Any]:
            return super().json() | {"model": "m-2026", "system_fingerprint": "fp_1"}

    answer, server = send(Told("hi"))
    assert answer.origin == f"{server.url} m-2026 fp_1" and answer.reason == "stop"

    class Refuses(Reply):
        def json(self) -> dict[str, Any]:
            return {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}

    assert send(Refuses(""))[0].reason == "stop, refusal"


def test_a_text_in_parts_is_joined() -> None:
    class Parts(Reply):
        def json(self) -> dict[str, Any]:
            parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
            return {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}

    assert send(Parts(""))[0].text == "ab"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_transient_status_is_no_refusal(status: int) -> None:
    with pytest.raises(Trouble, match=f"{status} busy") as caught:
        send(Reply("busy", status, headers={"Retry-After": "7"}))
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize(
    ("reply", "model", "cause", "hint"),
    [
        (Reply("who are you", 401), MODEL, "refuses record r7, sample 2: 401 who are you", "name the environment variable with the key"),
        (Reply("no such model", 404), "serve", "404 no such model", f"did you mean '{MODEL}'"),
        (Reply("", 301, headers={"Location": "https://new/v1"}), MODEL, "301", "redirects to https://new/v1: give the final address"),
        (Reply("too long", 400), MODEL, "400 too long", "exceed the context of the served model"),
    ],
)
def test_another_status_is_an_error_with_its_remedy(reply: Reply, model: str, cause: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        send(reply, model)
    assert cause in caught.value.message and hint in caught.value.hint and not caught.value.retryable


def test_success_without_a_message_is_transient() -> None:
    class Empty(Reply):
        def json(self) -> dict[str, Any]:
            return {"choices": []}

    with pytest.raises(Trouble, match=r"200 without choices\[0\].message.content"):
        send(Empty("x"))


def test_a_server_that_is_not_there_or_too_slow_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = ChatServer(Endpoint(url=url, timeout_seconds=1))
        with client.session() as session:
            with pytest.raises(Trouble, match="Connection refused"):
                client.answer(session, question())
            silent.listen()
            with pytest.raises(Trouble, match="no answer within 1 s"):
                client.look(session)


def test_served_models_are_listed_and_a_server_without_a_list_has_none() -> None:
    with EndpointServer(lambda _: "", models=("a", "b")) as server:
        client = ChatServer(Endpoint(url=server.url + "/"))
        with client.session() as session:
            assert client.look(session) == ["a", "b"]
        elsewhere = ChatServer(Endpoint(url=server.url.removesuffix("/v1")))
        with elsewhere.session() as session:
            assert elsewhere.look(session) == []


def test_the_key_goes_into_the_request_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert send("hi", api_key_env="JUDGE_KEY")[1].authorizations == [f"Bearer {KEY}"]
    with pytest.raises(ConfigError) as refused:
        send(Reply(f"{KEY} is unknown", 403), api_key_env="JUDGE_KEY")
    assert KEY not in str(refused.value) and "*** is unknown" in refused.value.message and "JUDGE_KEY" in refused.value.hint
    with pytest.raises(Trouble) as busy:
        send(Reply(f"{KEY} is over its rate", 429), api_key_env="JUDGE_KEY")
    assert KEY not in str(busy.value)


@pytest.mark.parametrize(("value", "message"), [("", "JUDGE_KEY is not set"), ("two words", "an HTTP header cannot carry")])
def test_a_missing_or_malformed_key_is_an_error_before_any_request(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match=message) as caught:
        ChatServer(Endpoint(url="http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY"))
    assert value == "" or value not in str(caught.value)


def test_no_proxy_and_no_netrc_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    answer, server = send("hi")
    assert answer.text == "hi" and server.authorizations == [None]
    remote = ChatServer(Endpoint(url="https://models.example.com/v1")).session()
    assert remote.trust_env and isinstance(remote, requests.Session)
