"""HTTP client of an OpenAI-compatible server: one chat request, its answer, and the failures that are transient.

No connection, no answer in time, and the statuses 408, 409, 429 and 5xx are :class:`Trouble`; any other status would recur, and is an
error with a remedy. The key is read from the environment and sent in the request alone: it is removed from any text of the server.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

from dora_core.config.execution import Endpoint
from dora_core.environment import variable
from dora_core.errors import ConfigError, did_you_mean

CONNECT_SECONDS = 10.0
VERSION_SECONDS = 2.0
MOST_RETRY_AFTER = 3600.0
MAY_PASS = frozenset({408, 409, 429})


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        label: its subject, for messages ("record r7, sample 2"); no texts.
        body: JSON of ``POST /chat/completions``, the model's name included. Equal bodies are sent once.
    """

    label: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The first choice's message.

    Attributes:
        text: empty where the server answered without a text, which is no answer: reasoning used up the tokens, a refusal, a filter, a tool
            call.
        tokens: None if the server reports no usage.
        finished: False if the text was cut off.
        reason: the server's finish reason, and what came instead of a text.
        origin: address, model and, where the server tells it, version or fingerprint.
    """

    text: str
    tokens: int | None
    finished: bool
    reason: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)


class Trouble(Exception):
    """A transient failure of a request. ``retry_after``: seconds until the server accepts the next one."""

    def __init__(self, cause: str, retry_after: float = 0.0):
        super().__init__(cause)
        self.cause, self.retry_after = cause, retry_after


class ChatServer:
    """Requests to one endpoint."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint, self._url, self._key = endpoint, endpoint.url.rstrip("/"), _key_of(endpoint)
        self._version = ""

    def session(self) -> requests.Session:
        session = requests.Session()
        session.auth = self._authorise
        session.trust_env = urlsplit(self._url).hostname not in ("127.0.0.1", "localhost", "::1")  # a proxy cannot reach loopback
        return session

    def look(self, session: requests.Session) -> list[str]:
        """Return the names of the served models, empty if the server does not list them.

        Raises:
            Trouble: it does not answer. ConfigError: it refuses the key.
        """
        response = self._send(session, "GET", "/models")
        if response.status_code in (401, 403):
            raise self._refusal(response, "the list of models", [])
        self._version = self._version or self._told_version(session)
        try:
            return [model["id"] for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            return []  # some servers have no such list

    def answer(self, session: requests.Session, question: Question) -> Answer:
        """Send one chat request.

        Raises:
            Trouble: no usable answer now. ConfigError: the server refuses the request, and would refuse it again.
        """
        response = self._send(session, "POST", "/chat/completions", question.body)
        status = response.status_code
        if status in MAY_PASS or status >= 500:
            raise Trouble(f"{status} {self._words(response)}", retry_after_seconds(response.headers))
        if status != 200:
            try:
                served = self.look(session)
            except Trouble:
                served = []
            raise self._refusal(response, question.label, served, question.body["model"])
        try:
            data = response.json()
            choice = data["choices"][0]
            message = choice["message"]
            text = _text_of(message.get("content"))
            tokens = (data.get("usage") or {}).get("completion_tokens")
            return Answer(
                text.encode("utf-8", "replace").decode(),  # JSON can hold half a surrogate pair, Parquet cannot
                tokens if isinstance(tokens, int) else None,
                choice.get("finish_reason") != "length",
                _reason_of(message, str(choice.get("finish_reason") or "unknown")),
                self._origin(data, question.body["model"]),
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Trouble(f"200 without choices[0].message.content: {self._words(response)}") from None

    def _origin(self, data: dict[str, Any], asked: str) -> str:
        """The server of an answer: address, model and version."""
        model = data.get("model")
        fingerprint = data.get("system_fingerprint")
        told = [str(each)[:80] for each in (self._version, fingerprint) if each]
        return " ".join([self._url, model if isinstance(model, str) and model else asked, *told])

    def _told_version(self, session: requests.Session) -> str:
        """Return the version that vLLM and SGLang tell beside their API; empty for other servers."""
        try:
            found = session.get(f"{self._url.removesuffix('/v1')}/version", timeout=VERSION_SECONDS, allow_redirects=False).json()
            return f"version {found['version']}" if isinstance(found["version"], str) else ""
        except (requests.RequestException, ValueError, LookupError, TypeError):
            return ""

    def _send(self, session: requests.Session, method: str, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        timeout = self._endpoint.timeout_seconds
        connect = min(CONNECT_SECONDS, timeout, self._endpoint.give_up_seconds / 2)
        try:
            return session.request(method, self._url + path, json=body, timeout=(connect, timeout), allow_redirects=False)
        except requests.ConnectTimeout:
            raise Trouble(f"no connection within {connect:g} s") from None
        except requests.ReadTimeout:
            raise Trouble(f"no answer within {timeout:g} s") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Trouble(self._scrubbed(_innermost(error))) from None
        except requests.RequestException as error:
            raise ConfigError(
                f"no request can be sent to the endpoint {self._url}: {self._scrubbed(str(error))}", hint="correct endpoint.url"
            ) from None

    def _refusal(self, response: requests.Response, what: str, served: list[str], model: str = "") -> ConfigError:
        status, variable = response.status_code, self._endpoint.api_key_env
        if status in (401, 403):
            hint = f"the key is read from {variable}" if variable else "name the environment variable with the key in endpoint.api_key_env"
        elif status == 404:
            names = f"the server's models: {did_you_mean(model, served)}" if served else "the server lists no models"
            hint = f"{names}; endpoint.url ends where /chat/completions begins, for most servers with /v1"
        elif 300 <= status < 400:
            hint = f"it redirects to {response.headers.get('Location', 'nowhere')}: give the final address in endpoint.url"
        else:
            hint = "the server does not accept this request: do prompt and new tokens exceed the context of the served model?"
        return ConfigError(f"the endpoint {self._url} refuses {what}: {status} {self._words(response)}", hint=hint)

    def _words(self, response: requests.Response) -> str:
        """Return the server's message about a failure, at most 300 characters, without the key."""
        try:
            data = response.json()
            error = data.get("error", data)
            text = error if isinstance(error, str) else error.get("message") or error.get("detail") or response.reason
        except (ValueError, AttributeError):
            text = response.text or response.reason
        return self._scrubbed(" ".join(str(text).split()))[:300]

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key. A custom auth also keeps ``requests`` from sending credentials of ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _text_of(content: Any) -> str:
    """Join the text of a message, which some servers send in parts; empty for none.

    Raises:
        TypeError: it is of another kind.
    """
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _reason_of(message: dict[str, Any], finish_reason: str) -> str:
    """The finish reason, and what the message holds instead of a text."""
    instead = {"refusal": "refusal", "tool_calls": "tool call", "reasoning_content": "reasoning", "reasoning": "reasoning"}
    held = dict.fromkeys(name for key, name in instead.items() if message.get(key))
    return ", ".join([finish_reason, *(name for name in held if not message.get("content"))])


def _key_of(endpoint: Endpoint) -> str:
    """Return the key, empty if the endpoint needs none."""
    if endpoint.api_key_env is None:
        return ""
    key = (variable(endpoint.api_key_env) or "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {endpoint.api_key_env} is not set, and the endpoint {endpoint.url} needs the key in it",
            hint=f"export {endpoint.api_key_env}=… where the stage runs (with `dora up`: before it), or set endpoint.api_key_env to null",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the key in {endpoint.api_key_env} has spaces or characters that an HTTP header cannot carry", hint="export the key alone"
        )
    return key


def _innermost(error: BaseException) -> str:
    """Return the cause ("Connection refused"), which requests and urllib3 wrap three times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """Read ``Retry-After``: seconds or a date (RFC 9110, section 10.2.3), an hour at most; 0 for anything else. A date is measured from
    the server's own ``Date``, whose clock may differ from this machine's, and means nothing without one."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        until, now = (email.utils.parsedate_tz(headers.get(name, "")) for name in ("Retry-After", "Date"))
        seconds = email.utils.mktime_tz(until) - email.utils.mktime_tz(now) if until and now else 0.0
    return min(max(0.0, seconds), MOST_RETRY_AFTER)
