"""`dora data preview`: the preview as text, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from dora_core.config.data import DataConfig
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.acceptance import Wanted
from dora_core.data.encoding import plain_prompt
from dora_core.data.preview import preview_data
from dora_core.data.previewed import InputPreview, Preview, RecordShown
from dora_core.data.record_counts import UNKNOWN
from dora_core.errors import DataError, ModelError
from flows.cli.files.settings import trained
from flows.cli.files.tables import write_text
from flows.cli.output import Out
from flows.config.loading import load_config, read_text
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.config.starter import starter
from flows.config.yaml_text import read_yaml
from flows.report.data_preview import SOURCE_COLUMNS, count_lines, input_line, render_page, source_rows

if TYPE_CHECKING:
    from dora_core.data.encoding import Encoder

PAGE_ROWS = 10_000
"""Most records, and most bad rows, on the page."""
SHOWN_CHARS = 600
"""Characters of a text on the terminal."""
TINY_END = "<eos>"


@dataclass(frozen=True)
class Request:
    """Arguments of the command; ``rows`` None: all."""

    paths: list[str]
    config: Path | None
    overrides: list[str]
    page: Path | None
    rows: int | None
    shown: int
    model: str | None
    run: str | None


class Template(NamedTuple):
    """How the policy reads texts.

    Attributes:
        encoder: None: plain text.
        note: which template this is, and its control tokens.
    """

    encoder: Encoder | None
    note: str


Parts = list[tuple[str, str]]
"""(kind, text): prompt, response, end token and number of tokens of one rendered example."""


def preview_files(request: Request, as_json: bool) -> list[str]:
    """Print the preview, and write the page if there is one; return the reasons for which a run would refuse the data."""
    out = Out(as_json)
    data, text, policy, wanted, undecided = _configured(request, out)
    template = _template(request.model, policy, text)
    with out.counting() as progress:
        preview, records, bad = preview_data(
            data, wanted, rows=request.rows, shown=request.shown, keep=PAGE_ROWS if request.page else 0, progress=progress
        )
    if undecided:
        preview = _without_trust(preview)
    examples = {item.place: [_example(record, template) for record in item.shown] for item in preview.inputs}
    for item in preview.inputs:
        _say_input(out, item, examples[item.place], template)
    if len(preview.inputs) > 1:
        _say_total(out, preview)
    out.say(f"h {'can' if preview.factors.possible else 'cannot'} be estimated: {preview.factors.why}")
    for warning in preview.warnings:
        out.say(f"note: {warning}")
    if request.page is not None:
        factors = _factors(request.run) if request.run else None
        title = str(request.config or ", ".join(request.paths))
        pages = [
            (f"{item.place}, {record.file.rsplit('/', 1)[-1]} row {record.row}", parts)
            for item in preview.inputs
            for record, parts in zip(item.shown, examples[item.place], strict=True)
        ]
        html = render_page(
            preview,
            records,
            bad,
            title=title,
            factors=factors[1] if factors else None,
            run=factors[0] if factors else None,
            examples=pages,
            template_note=template.note,
        )
        write_text(request.page, html)
        out.say(f"page: {request.page}")
    verdict = "a run would accept this data" if preview.accepted else "a run would refuse this data:"
    out.say(verdict)
    for refusal in preview.refusals:
        out.say(f"  {refusal}")
    rendering = {place: [dict(parts) for parts in each] for place, each in examples.items()}
    out.document(
        {"accepted": preview.accepted}
        | preview.model_dump()
        | {"template": template.note, "rendered": rendering, "page": None if request.page is None else str(request.page)}
    )
    return preview.refusals


def load_any(path: Path, overrides: Sequence[str] = ()) -> RealignConfig:
    """Load a configuration of a realignment or a self-training, by its sections.

    Raises:
        ConfigError: as :func:`flows.config.loading.load_config`.
    """
    raw, _ = read_yaml(read_text(path), path.name)
    is_self_training = isinstance(raw, dict) and bool(
        raw.keys() & (SelfTrainConfig.model_fields.keys() - RealignConfig.model_fields.keys())
    )
    return load_config(path, overrides, SelfTrainConfig if is_self_training else RealignConfig)


def _without_trust(preview: Preview) -> Preview:
    """The preview of data of which no source is known to be trusted."""
    names = [name for name in preview.total.sources if name != UNKNOWN]
    why = f"it is open which source is trusted: {', '.join(names)}" if len(names) > 1 else "there is one source alone"
    inputs = [item.evolve(golden=[]) for item in preview.inputs]
    return preview.evolve(inputs=inputs, factors=preview.factors.evolve(possible=False, why=why))


def _configured(request: Request, out: Out) -> tuple[DataConfig, TextConfig, ModelConfig, Wanted, bool]:
    """Return data, text and policy settings, the use of the data by a run, and whether the trusted source is undecided."""
    if request.config is not None:
        config = load_any(request.config, request.overrides)
        return config.data, config.text, config.policy.model, config.wanted, False
    with out.counting() as progress:
        made = starter(request.paths, folder=Path.cwd(), rows=request.rows, progress=progress)
    out.say("no configuration: read as `dora init` would write it")
    for text in (*made.assumed, *made.decide):
        out.say(f"  {text}")
    return made.data, TextConfig(), ModelConfig(), made.wanted, not made.is_trusted


def _template(model: str | None, policy: ModelConfig, text: TextConfig) -> Template:
    chosen = policy if model is None else ModelConfig(source=model)
    if chosen.is_tiny:
        return Template(None, f"Policy tiny: plain text, its end token is {TINY_END}.")
    from dora_core.data.encoding import Encoder
    from dora_core.models.model_files import model_files

    files = model_files(trained(chosen, "--model" if model else "policy"))
    encoder = Encoder(files.tokenizer, text)
    limits = f"limits {text.max_prompt_tokens} + {text.max_response_tokens} tokens"
    if encoder.chat is None:
        bos = f"{encoder.tokenizer.bos_token} in front of a prompt" if encoder.tokenizer.bos_token else "no beginning-of-sequence token"
        why = "as text.template says" if encoder.tokenizer.chat_template else "as there is no chat template"
        described = f"plain text, {why}, with {bos} and {encoder.tokenizer.eos_token} behind a response"
    else:
        described = "; ".join(encoder.chat.lines())
    ends = ", ".join(encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.ends(files.generation_config))))
    return Template(encoder, f"Policy {chosen.source}: {described}; generation stops at {ends}; {limits}.")


def _example(record: RecordShown, template: Template) -> Parts:
    """The prompt and the preferred response as the policy reads them, decoded token by token: control tokens show as their text, and the
    end token apart."""
    best = max(record.responses, key=lambda one: float("-inf") if one.reward is None else one.reward)
    encoder = template.encoder
    if encoder is None:
        return [("prompt", plain_prompt(record.prompt) + "\n"), ("response", best.text), ("end", TINY_END)]
    try:
        encoded = encoder.encode(record.prompt, best.response)
    except (ModelError, DataError) as error:
        return [("prompt", f"(refused: {error.message} → {error.hint})"), ("response", best.text), ("end", "")]
    ids, end, tokenizer = encoded.response_ids, "(cut: no end token)", encoder.tokenizer
    counted = f"{len(encoded.prompt_ids):,} + {len(ids):,} tokens"
    counted += f", {encoded.learned:,} of them learned" if encoded.context else ""
    cut = f", {encoded.truncated:,} cut" if encoded.truncated else ""
    if not encoded.cut:
        ids, end = ids[:-1], str(tokenizer.convert_ids_to_tokens(ids[-1]))
    parts, place = [("prompt", tokenizer.decode(encoded.prompt_ids))], 0
    for start, stop in encoded.context:  # turns of others, which are read and not learned
        parts += [("response", tokenizer.decode(ids[place:start])), ("prompt", tokenizer.decode(ids[start:stop]))]
        place = stop
    return [*parts, ("response", tokenizer.decode(ids[place:])), ("end", end), ("tokens", counted + cut)]


def _say_input(out: Out, item: InputPreview, examples: Sequence[Parts], template: Template) -> None:
    out.say("")
    out.say(input_line(item))
    if item.refused:
        out.say(f"  → {item.hint}" if item.hint else "")
        return
    if item.files > 1:
        listed = ", ".join(name.rsplit("/", 1)[-1] for name in item.names)
        out.say(f"  files: {item.files}: {listed}{' …' if item.files > len(item.names) else ''}")
    out.say("  mapping:")
    for line in item.mapping.rstrip().splitlines():
        out.say(f"    {line}")
    for use in ("used", "carried", "ignored", "unread"):
        names = [column.column for column in item.columns if column.use == use]
        if names:
            why = " (nothing reads these parts)" if use == "unread" else ""
            out.say(f"  {use}: {', '.join(names)}{why}")
    for name, text in count_lines(item.counts):
        out.say(f"  {name}: {text}")
    if item.counts.sources:
        out.table(SOURCE_COLUMNS, source_rows(item.counts))
    for note in item.notes:
        out.say(f"  noted: {note}")
    if item.bad:
        reasons = ", ".join(f"{reason} {n}" for reason, n in item.bad_by_reason.items())
        out.say(f"  bad rows: {item.bad:,} ({reasons})")
    if item.first_bad is not None:
        out.say(f"  first bad row: {item.first_bad.in_words()}")
    for record, parts in zip(item.shown, examples, strict=True):
        _say_record(out, record, parts, template)


def _say_record(out: Out, record: RecordShown, parts: Parts, template: Template) -> None:
    out.say(f"  ── record {record.record_id}, row {record.row}, {record.split}")
    for message in record.prompt:
        out.say(f"    [{message['role']}] {_clip(message['content'])}")
    rewards = [one.reward for one in record.responses if one.reward is not None]
    for one in record.responses:
        facts = [one.source or "unknown source", "not measured" if one.reward is None else f"reward {one.reward:g}"]
        if one.reward is not None and len(set(rewards)) > 1 and one.reward == max(rewards):
            facts.append("preferred")
        out.say(f"    [assistant · {' · '.join(facts)}] {_clip(one.text)}")
    if record.label_probability is not None:
        out.say(f"    the label is right with probability {record.label_probability:.2f}")
    out.say(f"    as the policy reads it ({template.note.rstrip('.')}):")
    styles = {"prompt": "", "response": "blue", "end": "reverse", "tokens": "dim"}
    marks = {"prompt": ("", ""), "response": ("⟦", "⟧"), "end": ("⟨", "⟩"), "tokens": (" (", ")")}
    line = Text.assemble(*((f"{marks[kind][0]}{_clip(text)}{marks[kind][1]}", styles[kind]) for kind, text in parts))
    out.console.print(line)


def _clip(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} … ({len(text) - SHOWN_CHARS:,} more characters)"


def _say_total(out: Out, preview: Preview) -> None:
    out.say("")
    out.say("all inputs of train and eval:")
    for name, text in count_lines(preview.total):
        out.say(f"  {name}: {text}")


def _factors(run: str) -> tuple[str, dict[tuple[str, int], float]]:
    """The run's id, and h by (record id, place of the response)."""
    import pyarrow.parquet as pq

    from flows.cli.files.run_tables import tables_of_run
    from infra.settings import Settings
    from infra.store.store import Store

    store = Store(Settings().store_uri)
    tables = tables_of_run(store, run)
    if tables.factors is None:
        from dora_core.errors import ConfigError

        raise ConfigError(f"{tables.name} has no calibration", hint="name a run with objective dora, or leave --run out")
    table: Any = pq.read_table(tables.factors, columns=["record_id", "response_index", "h"])
    keys = zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)
    return tables.name, dict(zip(keys, table["h"].to_pylist(), strict=True))
