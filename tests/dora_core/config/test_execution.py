"""Execution settings: addresses without credentials, and defaults for one machine without a GPU."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.execution import Endpoint, Execution


@pytest.mark.parametrize("url", ["ftp://host/v1", "host:8000/v1", "http://user:password@host/v1", "http://a b/v1"])
def test_an_address_is_http_and_has_no_credentials(url: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Endpoint(url=url)


def test_the_key_is_named_by_its_environment_variable() -> None:
    assert Endpoint(url="http://localhost:8000/v1", api_key_env="OPENAI_API_KEY").api_key_env == "OPENAI_API_KEY"
    with pytest.raises(ValidationError, match="should match pattern"):
        Endpoint(url="http://localhost:8000/v1", api_key_env="sk-1234")


def test_defaults_run_on_a_cpu() -> None:
    defaults = Execution()
    assert (defaults.gpus_per_worker, defaults.strategy, defaults.endpoint) == (0.0, "ddp", None)
