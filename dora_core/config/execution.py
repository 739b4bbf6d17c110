"""Execution settings of stages: workers, devices, budgets, endpoints. They do not change results, and none enters a digest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dora_core.strict_model import ENVIRONMENT_PATTERN, StrictModel

KL_NEEDS_MODEL = (
    "execution.evaluate.stream_layers would read all layers for every sampled token: set evaluate.kl_prompts: 0, or stream_layers: false "
    "where a worker's memory holds the model"
)


class Endpoint(StrictModel):
    """OpenAI-compatible server (vLLM, SGLang, a hosted one) and the limits of requests to it; stages name the model themselves."""

    url: str = Field(pattern=r"^https?://[^\s@]+$", description="Base address, up to and including /v1; no credentials in it.")
    api_key_env: str | None = Field(
        None, pattern=ENVIRONMENT_PATTERN, description="Environment variable with the key, on the machine that sends requests; null = none."
    )
    concurrency: int = Field(16, ge=1, le=1024, description="Concurrent requests, over all prompts.")
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="Timeout of one request.")
    give_up_seconds: float = Field(
        300.0, gt=0, le=86_400, description="Fail after this long without any answer, retries included; answers received are kept."
    )
    max_without_text: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of answers without text (reasoning used up the tokens, refusal, filter, tool call); above it the stage "
        "fails, and asks for those again when it runs again.",
    )


def endpoint_mistake(setting: str, asks: bool, key: str, endpoint: Endpoint | None, *, may_idle: bool = False) -> str | None:
    """The one rule for settings that name a model behind a server: they go with the server's address. Returns the error message, or None.

    Args:
        setting: key and value: ``generate.served_model=null``, ``judge.kind=llm``.
        asks: whether it names a model behind a server.
        key: where the address is given: ``execution.generate.endpoint.url``.
        may_idle: an address that no setting uses is allowed.
    """
    if asks == (endpoint is not None) or (may_idle and not asks):
        return None
    return (
        f"{setting} asks a server: give its address in {key}"
        if asks
        else f"{setting} asks no server: leave out {key}, or name a served model"
    )


class Execution(StrictModel):
    """Execution settings of one stage; not part of any digest."""

    workers: int = Field(
        2,
        ge=0,
        le=4096,
        description="Training workers, or maximum of scoring actors; 0 = in the stage's own process, without Ray (tests, debugging).",
    )
    gpus_per_worker: float = Field(0.0, ge=0, le=8, description="GPUs per worker; 0 runs on CPU (gloo).")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs per worker, also its number of torch threads.")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="ddp: replicated weights; fsdp: sharded (FSDP2), and read by shards.")
    replicas: int = Field(
        1, ge=1, description="With fsdp: groups of workers that each hold all shards (HSDP); one per machine saves its network traffic."
    )
    cpu_offload: bool = Field(
        False, description="With fsdp: weights, gradients and optimizer state stay in host memory, a layer at a time is on the GPU."
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="With fsdp: neighbouring workers that split each layer's heads and widths, by the model's own plan, and train on the "
        "same records. For layers that are too large for one GPU; full training only.",
    )
    activation_offload: bool = Field(False, description="With gradient_checkpointing: what is kept for each layer stays in host memory.")
    micro_batch_tokens: int = Field(
        8192,
        ge=16,
        description="Tokens per forward-backward pass on one worker, a prompt counted once; a longer record forms its own pass.",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Maximum of records per forward-backward pass; null = limited by tokens only."
    )
    prefix_sharing: bool = Field(True, description="Compute a record's prompt once for all its responses, where the model allows it.")
    batch_tokens: int = Field(16_384, ge=256, description="Tokens per inference batch, padding included.")
    shard_rows: int = Field(2048, ge=1, description="Most rows of an inference shard; the last shards are smaller.")
    stream_layers: bool = Field(
        False,
        description="reference and evaluate: read a layer's weights when it runs, for models that no worker can hold; needs large batches.",
    )
    checkpoint_every: int = Field(50, ge=1, description="Optimisation steps between checkpoints.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    max_failures: int = Field(2, ge=0, le=100, description="Worker failures tolerated: per stage in training, per shard in scoring.")
    endpoint: Endpoint | None = Field(None, description="Server for the requests of generate and judge stages; other stages send none.")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Execution:
        """Refuse options that would do nothing."""
        if self.strategy != "fsdp" and (self.cpu_offload or self.replicas > 1 or self.tensor_parallel > 1):
            tensor = f"tensor_parallel={self.tensor_parallel}"
            option = "cpu_offload" if self.cpu_offload else f"replicas={self.replicas}" if self.replicas > 1 else tensor
            raise ValueError(f"{option} needs strategy fsdp (here {self.strategy})")
        if self.strategy == "fsdp" and self.workers and self.workers % self.replicas:
            raise ValueError(f"workers={self.workers} is not a multiple of replicas={self.replicas}")
        if self.tensor_parallel > 1 and self.replicas > 1:
            raise ValueError("tensor_parallel and replicas do not work together: set one of them to 1")
        if self.tensor_parallel > 1 and (not self.workers or self.workers % self.tensor_parallel):
            raise ValueError(f"workers={self.workers} is not a multiple of tensor_parallel={self.tensor_parallel}")
        if self.activation_offload and not self.gradient_checkpointing:
            raise ValueError("activation_offload needs gradient_checkpointing: true")
        return self
