"""``dora generate``: a file of responses, from the stage ``generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dora_core.config.data import DataSource
from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError
from dora_core.models.pinning import pin_text
from flows.cli.files.settings import from_options, trained
from flows.cli.files.stages import Done, FileStages, with_prompts
from flows.cli.files.tables import Output
from tasks.runtime.spec import StageRef
from tasks.stages import generate, prompts

HINT = "give --model FOLDER_OR_ID, or --endpoint URL with --served-model NAME"


def generate_file(stages: FileStages, source: DataSource, output: Output, given: Mapping[str, object], overrides: Sequence[str]) -> Done:
    """Write ``prompt, record_id, sample, response, tokens, finished`` (and ``task`` where there is one), ordered as the prompts are.

    Args:
        given, overrides: fields of the stage's spec, see :func:`flows.cli.files.settings.from_options`.

    Raises:
        DoraError: see the stages; ConfigError: both or neither of a model and a server.
    """
    import pyarrow.parquet as pq

    read = prompts.plan("prompts", source)
    spec = _spec(read.ref(), given, overrides)
    output.check(computed=spec.is_done(stages.store))
    records_folder, samples_folder = stages.run([read, spec])
    table = pq.read_table(samples_folder / "samples.parquet").drop_columns(["prompt_hash"])
    output.write(with_prompts(table, pq.read_table(records_folder / "records.parquet")))
    return stages.done(spec, output)


def _spec(records: StageRef, given: Mapping[str, object], overrides: Sequence[str]) -> generate.Spec:
    """Return the spec with its model pinned."""
    fixed = {"records": records, "policy": None, "split": "eval"}
    spec = from_options(generate.Spec, given, overrides, fixed=fixed, hint=HINT)
    if spec.generate.served_model is None:
        model = trained(spec.model, "--model")
        return spec.evolve(model=model, text=pin_text(spec.text, model))
    if spec.model != ModelConfig():
        raise ConfigError("either a model responds or a server does", hint=HINT)
    return spec
