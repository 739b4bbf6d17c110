"""Errors carry a headline, a remedy and a retry decision."""

from __future__ import annotations

import pytest

from dora_core import errors
from dora_core.errors import ConfigError, DoraError, ServiceError, did_you_mean

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DoraError)]


def test_text_is_message_and_hint() -> None:
    assert str(ConfigError("loss 'dppo' is unknown", hint="did you mean 'dpo'?")) == "loss 'dppo' is unknown\n  hint: did you mean 'dpo'?"
    assert str(ConfigError("loss 'dppo' is unknown")) == "loss 'dppo' is unknown"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_only_an_unreachable_service_is_retried_by_default(kind: type[DoraError]) -> None:
    assert kind("x").retryable is (kind is ServiceError)
    assert kind("x", retryable=True).retryable and not kind("x", retryable=False).retryable


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_json_has_type_message_hint_and_retry(kind: type[DoraError]) -> None:
    expected = {"type": kind.__name__, "message": "m", "hint": "h", "retryable": False}
    assert kind("m", hint="h", retryable=False).to_json() == expected


def test_the_nearest_name_comes_first_and_all_are_listed() -> None:
    assert did_you_mean("dppo", ["lire", "dpo"]) == "did you mean 'dpo'? allowed: dpo, lire"
    assert did_you_mean("zzz", ["lire", "dpo"]) == "allowed: dpo, lire"
