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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu_offload": True}, "cpu_offload needs strategy fsdp"),
        ({"replicas": 2}, "replicas=2 needs strategy fsdp"),
        ({"strategy": "fsdp", "replicas": 2, "workers": 3}, "workers=3 is not a multiple of replicas=2"),
        ({"tensor_parallel": 2}, "tensor_parallel=2 needs strategy fsdp"),
        ({"strategy": "fsdp", "tensor_parallel": 2, "workers": 3}, "workers=3 is not a multiple of tensor_parallel=2"),
        ({"strategy": "fsdp", "tensor_parallel": 2, "workers": 0}, "workers=0 is not a multiple of tensor_parallel=2"),
        ({"strategy": "fsdp", "tensor_parallel": 2, "replicas": 2, "workers": 8}, "tensor_parallel and replicas do not work together"),
        ({"activation_offload": True}, "activation_offload needs gradient_checkpointing"),
    ],
)
def test_options_that_would_do_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Execution.model_validate(settings)
    assert Execution(strategy="fsdp", replicas=2, workers=4, cpu_offload=True).replicas == 2
