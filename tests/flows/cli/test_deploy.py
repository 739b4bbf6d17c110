"""`dora deploy`: options, and the exit code without a server. What it changes on a server: ``tests/flows/deployment/test_deploy.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.deploy import PoolType
from tests.flows.cli.invoked import assert_help, assert_wrong, document, invoke


def test_help_has_an_example_and_the_options() -> None:
    assert_help("deploy", "--pool-type", "--image", "--limit", "--webhook", "--dry-run")


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--pool", "people"]])
def test_without_a_server_a_failure_with_the_next_step(arguments: list[str], own_home: Path) -> None:
    done = invoke("deploy", *arguments)
    assert done.code == 1 and "there is no Prefect server to deploy to" in done.error
    assert "hint: start one with `dora up`, or name one in DORA_PREFECT_API_URL" in done.error


def test_the_error_is_one_document(own_home: Path) -> None:
    error = document("deploy", code=1)["error"]
    assert error["type"] == "ServiceError" and error["retryable"] is False and "dora up" in error["hint"]


def test_wrong_options() -> None:
    assert_wrong("deploy", "--pool-type", "vm", says="'vm' is not one of " + ", ".join(repr(kind.value) for kind in PoolType))
    assert_wrong("deploy", "--limit", "0", says="Input should be greater than or equal to 1")
