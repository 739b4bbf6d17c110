"""Checks of the policy's files at plan time, before anything heavy runs: tokenizer and configurations, no weights.

One function per subject, listed in :data:`CHECKS`; each refuses a model that could not be trained as configured, and returns lines for the
plan. The tiny policy has no files before it is trained, and nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dora_core.config.method import OptimizationConfig
from dora_core.data.chat_template import FIXED_DATE
from dora_core.data.conversations import Conversation, ConversationCounter, check_conversations, refused
from dora_core.data.encoding import Encoder
from dora_core.errors import ConfigError
from dora_core.models.model_files import ModelFiles, model_files
from flows.config.models import RealignConfig

FIRST_ROWS = 2_000
"""Rows of each input whose conversations are rendered by the plan; the others are checked when the stage ``ingest`` has read them."""


class Described(NamedTuple):
    """Findings of one check, or of all.

    Attributes:
        lines: facts about the model, one line each, for the plan.
        notes: doubts, one sentence each, which become notes of the run.
    """

    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


ModelCheck = Callable[[ModelFiles, RealignConfig], Described]
"""Raises ModelError, DataError or ConfigError where a run would fail or be wrong."""


def tokens(files: ModelFiles, config: RealignConfig) -> Described:
    """The tokens that prompts and responses consist of, and conversations of the data that the chat template refuses."""
    tokenizer, text = files.tokenizer, config.text
    encoder = Encoder(tokenizer, text)
    chat, ends = encoder.chat, encoder.ends(files.generation_config)
    _check_first_rows(config, encoder)
    if chat is None:
        bos = f"{tokenizer.bos_token!r} is put in front of a prompt" if tokenizer.bos_token else "the tokenizer has no BOS"
        return Described((f"plain text; {bos}; a response ends with {tokenizer.eos_token!r}; {_generation_ends(ends, files)}",))
    notes = []
    if chat.day is not None and text.template_date is None:
        notes.append(
            f"the policy's chat template shows the day, and every prompt shows {FIXED_DATE}, so that runs do not differ between days; "
            "a server that renders the template itself shows its own (text.template_date sets another)"
        )
    return Described((*chat.lines(), _generation_ends(ends, files)), tuple(notes))


def _generation_ends(ends: Iterable[int], files: ModelFiles) -> str:
    shown = ", ".join(f"{token!r} ({number})" for number, token in ((n, files.tokenizer.convert_ids_to_tokens(n)) for n in sorted(ends)))
    return f"generation stops at {shown}"


def _check_first_rows(config: RealignConfig, encoder: Encoder) -> None:
    """Encode the first record of every shape among the first rows of each input.

    Raises:
        DataError: the chat template refuses its conversation, or a response cannot be told from the end of its turn.
    """
    from dora_core.data.adapted import AdaptedInput
    from dora_core.data.adapter.canonical import CanonicalRow
    from dora_core.data.inputs import inputs_of, rules_of
    from dora_core.data.records import Record, parse_canonical
    from dora_core.errors import DataError, ModelError

    for item in inputs_of(config.data):
        counter, rules = ConversationCounter(), rules_of(config.data, item)
        for row in AdaptedInput(item, {}, most_rows=FIRST_ROWS).rows():
            record = parse_canonical(row.value, rules) if isinstance(row.value, CanonicalRow) else None
            if not isinstance(record, Record) or not counter.add_record(record.prompt, record.responses, record.record_id):
                continue
            try:
                encoder.encode_lists([record.prompt], [record.responses])
            except (ModelError, DataError) as error:
                raise refused(error, f"{record.record_id} ({item.place}, row {row.row})") from error


def architecture(files: ModelFiles, config: RealignConfig) -> Described:
    """Describe the model without its weights, and try the lengths, the adapters and the sampling that the configuration asks of it."""
    from dora_core.models.description import Use, describe, examine

    stages = _trainings(config)
    lora = {f"{stage}.optimization.lora": optimization.lora for stage, optimization in stages.items() if optimization.lora is not None}
    if config.sft.enabled and (asked := config.align.optimization.lora) is not None and asked.result == "adapter":
        raise ConfigError(
            "align.optimization.lora.result=adapter: its base would be the supervised start, which has no name of its own",
            hint="set sft.enabled to false, or align.optimization.lora.result to merged",
        )
    samples = {"evaluate.kl_max_new_tokens": config.evaluate.kl_max_new_tokens} if config.evaluate.kl_prompts else {}
    if config.compare is not None:
        samples["compare.generate.max_new_tokens"] = config.compare.generate.max_new_tokens
    policy = config.policy
    found, model = describe(files.config, files.name, trust_remote_code=policy.trust_remote_code)
    balance = {f"{stage}.optimization.router_balance": optimization.router_balance for stage, optimization in stages.items()}
    tensor = {f"execution.{stage}.": config.execution.of(stage).tensor_parallel for stage in stages}
    notes = examine(found, model, Use(config.text, lora, samples=samples, balance=balance, tensor=tensor))
    return Described(tuple(found.lines()), tuple(notes))


def _trainings(config: RealignConfig) -> dict[str, OptimizationConfig]:
    """Settings of the trainings of the policy, by their section."""
    return ({"sft": config.sft.optimization} if config.sft.enabled else {}) | {"align": config.align.optimization}


CHECKS: tuple[ModelCheck, ...] = (architecture, tokens)


def describe_policy(config: RealignConfig) -> Described:
    """Run all checks on the pinned policy of ``config``; of ``tiny`` only that its optimiser is installed.

    Raises:
        ModelError, DataError, ConfigError: of the first check that refuses.
    """
    for stage, optimization in _trainings(config).items():
        if (ranks := config.execution.of(stage).tensor_parallel) > 1:
            from dora_core.models.tensor_plan import refuse_with_tensor_groups

            refuse_with_tensor_groups(optimization, ranks, stage)
        if optimization.optimizer != "adamw":
            from dora_core.training.optimizers import require_8bit

            require_8bit(optimization, f"{stage}.optimization")
    if config.policy.is_tiny:
        return Described()
    files = model_files(config.policy)
    found = [check(files, config) for check in CHECKS]
    return Described(tuple(line for one in found for line in one.lines), tuple(note for one in found for note in one.notes))


def check_data(config: RealignConfig, shapes: Iterable[Conversation]) -> None:
    """Check the conversations of all records, once they are read.

    Raises:
        DataError: the policy's chat template refuses one of them.
    """
    if config.policy.is_tiny:
        return
    template = Encoder(model_files(config.policy).tokenizer, config.text).template
    if template is not None:
        check_conversations(template, shapes)
