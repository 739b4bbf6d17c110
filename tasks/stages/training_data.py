"""Stage ``training_data``: the records of alignment, joined, chosen and tokenised once.

Input: records, reference log-probabilities, calibration factors (where the objective uses them), probabilities of labels
(where ``trust.apply`` says so), the tokenizer of the starting model.
Output: ``training_data.arrow`` (``dora_core/training/alignment_data.py``), which every training worker maps into memory. Guarantee: it
does not depend on settings of training alone, so another λ, learning rate or loss of as many responses does not tokenise again.
Unpaired records (``dora_core/data/unpaired.py``) are refused before anything is tokenised if the loss does not read them; ``align``
refuses them too, for data that another loss prepared.
Cost: one pass over the three tables, streamed; no model is loaded.

On demand: ``align`` computes this spec from its own (:meth:`tasks.stages.align.Spec.preparation`). A finished ``align`` never reads it
again, so it may be deleted then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from dora_core.config.alignment import Loss
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.strict_model import is_empty
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec, local_model
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import CALIBRATION_FILE, FINALISTS, LOGPS_FILE, RECORDS_FILE, TRAINING_DATA_FILE, TRUST_FILE
from tasks.tables.record_selection import HeldOutPrompts, RecordSelection
from tasks.tables.rows import record_batches, responses_of
from tasks.tables.training_records import Aggregate, TrustUse

if TYPE_CHECKING:
    from dora_core.training.alignment_data import Cuts


class Spec(StageSpec):
    """See the module docstring. ``max_responses``: of a record, at most; the loss may read fewer than are configured. ``loss``: that
    of the alignment, None to write whatever records there are. ``selection``: part of the records; None: all. ``held_out``: prompts whose
    records are left out."""

    stage: ClassVar[str] = "training_data"
    version: ClassVar[int] = 1  # that of the file's layout, dora_core.training.alignment_data.FORMAT
    on_demand: ClassVar[bool] = True

    records: StageRef
    calibration: StageRef | None
    reference: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig
    aggregate: Aggregate
    max_responses: int = Field(ge=2)
    trust: StageRef | None = None
    trust_use: TrustUse = "soft_label"
    selection: RecordSelection | None = Field(None, exclude_if=is_empty)
    held_out: HeldOutPrompts | None = Field(None, exclude_if=is_empty)
    recipe: str | None = Field(None, exclude_if=is_empty)
    """Finalist of the race whose tables are read, where :attr:`calibration` and :attr:`trust` are one."""
    loss: Annotated[Loss | None, NotInDigest] = None


class Facts(BaseFacts):
    """Texts of the training records that were cut (``dora_core/training/alignment_data.py:Cuts``)."""

    responses: int = 0
    prompts: int = 0
    cut_responses: int = 0
    cut_prompts: int = 0
    cut_tokens: int = 0
    lost_system: int = 0
    equal: int = Field(0, description="Records left out: their responses differ, and are the same tokens after the cut.")


def run(spec: Spec, context: StageContext) -> StageOutput:
    from dora_core.data.encoding import Encoder
    from dora_core.losses.unpaired import refuse_unpaired
    from dora_core.models.loading import load_tokenizer
    from dora_core.training.alignment_data import AlignmentData, write_alignment_data
    from tasks.tables.training_records import chosen_records, count_unpaired, joined_records

    records = context.fetch(spec.records) / RECORDS_FILE
    if spec.loss is not None:
        refuse_unpaired(spec.loss, *count_unpaired(records, "train"))
    folder = f"{FINALISTS}/{spec.recipe}" if spec.recipe else ""
    factors = None if spec.calibration is None else context.fetch(spec.calibration) / folder / CALIBRATION_FILE
    trust = None if spec.trust is None else context.fetch(spec.trust) / folder / TRUST_FILE
    reference = context.fetch(spec.reference) / LOGPS_FILE
    batches = joined_records(records, reference, factors, spec.aggregate, trust, spec.trust_use, spec.selection, spec.held_out)
    sources: set[str | None] = set()
    count = total = 0
    columns = ["sources"] if spec.selection is None else spec.selection.columns
    for batch in record_batches(records, [*columns, "prompt_hash"], "train"):
        total += len(batch)
        batch = chosen_records(batch, spec.selection, spec.held_out)
        if not len(batch):
            continue
        sources.update(responses_of(batch)["source"].unique().to_pylist())
        count += len(batch)
    if spec.selection is not None and not count:
        raise spec.selection.none_found(total)
    tokenizer = load_tokenizer(local_model(spec.start or spec.model, context.store.uri))
    temporary = context.scratch / TRAINING_DATA_FILE
    encoder = Encoder(tokenizer, spec.text)
    cuts = write_alignment_data(temporary, batches, encoder, spec.max_responses, sources=sources, records=count)
    temporary.replace(context.path / TRAINING_DATA_FILE)
    data = AlignmentData(context.path / TRAINING_DATA_FILE)
    metrics = {"records": len(data), "unpaired": data.unpaired, "dropped": data.dropped, "tokens": int(data.tokens.sum())}
    facts = Facts(**asdict(cuts), warnings=list(_doubts(cuts, spec.text)))
    return StageOutput(rows=len(data), metrics={name: float(value) for name, value in metrics.items()}, facts=facts)


def _doubts(cuts: Cuts, text: TextConfig) -> Iterator[str]:
    """Notes about texts that lost much."""
    from dora_core.data.encoding import MUCH_CUT

    if cuts.cut_responses > MUCH_CUT * cuts.responses:
        share = f"{cuts.cut_responses / cuts.responses:.0%} of the responses of training records"
        yield f"{share} are longer than text.max_response_tokens = {text.max_response_tokens} and were cut: their ends are not learned"
    if cuts.cut_prompts > MUCH_CUT * cuts.prompts:
        share = f"{cuts.cut_prompts / cuts.prompts:.0%} of the prompts of training records"
        yield f"{share} are longer than text.max_prompt_tokens = {text.max_prompt_tokens} and lost their beginning"
    if cuts.lost_system:
        yield f"{cuts.lost_system} prompts lost their system message: raise text.max_prompt_tokens = {text.max_prompt_tokens}"
    if cuts.equal:
        yield (
            f"{cuts.equal} records were left out: their responses differ only beyond text.max_response_tokens = {text.max_response_tokens}"
        )


def headline(result: StageResult[Any]) -> str:
    unpaired = result.metrics.get("unpaired", 0)  # absent before there were such records
    of_one = f" ({unpaired:.0f} unpaired)" if unpaired else ""
    return f"{result.rows} records{of_one}, {result.metrics['tokens']:,.0f} tokens"


STAGE = Stage(Spec, run, Facts, headline=headline)
