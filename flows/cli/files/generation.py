"""``dora generate``: a file of responses, from the stage ``generate``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dora_core.config.data import DataSource
from dora_core.config.execution import Execution, endpoint_mistake
from dora_core.config.method import GenerateConfig, ModelConfig, TextConfig
from dora_core.errors import ConfigError
from dora_core.strict_model import StrictModel
from flows.cli.files.settings import trained
from flows.cli.files.stages import FileStages, document, with_prompts
from flows.cli.files.tables import Output
from tasks.stages import generate, prompts


class GenerateOptions(StrictModel):
    """Settings of ``dora generate``; the keys of ``--set``."""

    model: ModelConfig | None = Field(None, description="What responds, unless a server does.")
    generate: GenerateConfig = Field(default_factory=GenerateConfig, description="Sampling.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation of prompts.")
    execution: Execution = Field(description="Workers, devices, and the server for requests.")


def generate_file(stages: FileStages, source: DataSource, output: Output, settings: GenerateOptions) -> dict[str, Any]:
    """Write ``prompt, record_id, sample, response, tokens, finished`` (and ``task`` where there is one), ordered as the prompts are.

    Returns:
        Output path, counts and facts, as JSON.

    Raises:
        DoraError: see the stages; ConfigError: both or neither of a model and a server.
    """
    import pyarrow.parquet as pq

    served, endpoint = settings.generate.served_model, settings.execution.endpoint
    hint = "give --model FOLDER_OR_ID, or --endpoint URL with --served-model NAME"
    if (settings.model is None) == (endpoint is None):
        raise ConfigError("either a model responds or a server does", hint=hint)
    if mistake := endpoint_mistake(f"generate.served_model={served or 'null'}", served is not None, "--endpoint", endpoint):
        raise ConfigError(mistake, hint=hint)
    read = prompts.plan("prompts", source)
    spec = generate.Spec(
        records=read.ref(),
        policy=None,
        model=ModelConfig() if settings.model is None else trained(settings.model, "--model"),
        text=settings.text,
        generate=settings.generate,
        execution=settings.execution,
    )
    output.check(computed=spec.is_done(stages.store))
    records_folder, samples_folder = stages.run([read, spec])
    table = pq.read_table(samples_folder / "samples.parquet").drop_columns(["prompt_hash"])
    output.write(with_prompts(table, pq.read_table(records_folder / "records.parquet")))
    return document(stages, spec, output)
