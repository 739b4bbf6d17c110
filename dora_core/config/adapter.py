"""Adapter: the declaration that turns rows of any schema into canonical records; part of the digest.

The sections follow the reading of one row: ``shape`` (how responses lie in the rows) → ``columns`` (where each canonical field is) →
``label`` (the preferred response) → ``messages`` (how a conversation is written) → ``context`` (system prompt, history, input, tools).
A preset (``dora_core/data/presets``) is a prepared adapter; keys that are written beside it override its keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from dora_core.config.goals import SampledWeights, WeightColumn, placeholders
from dora_core.config.label_parts import TwoScores, Values, Votes, disjoint
from dora_core.config.path_syntax import MappedPath, PathText, parse_path
from dora_core.strict_model import StrictModel, is_empty

Shape: TypeAlias = Literal["pair", "list", "ab", "unpaired", "rows", "tree", "single"]


class AdapterColumns(StrictModel):
    """Where each canonical field is in a row. null: the column of the same name, if it is there; false: not read."""

    id: MappedPath = Field(None, description="Row id; without one a row gets a digest of its content.")
    prompt: MappedPath = Field(None, description="Prompt: text, messages, or a transcript.")
    chosen: MappedPath = Field(None, description="Shape pair: the preferred response.")
    rejected: MappedPath = Field(None, description="Shape pair: the other response.")
    chosen_source: MappedPath = Field(None, description="Shape pair: source of the preferred response.")
    rejected_source: MappedPath = Field(None, description="Shape pair: source of the other response.")
    a: MappedPath = Field(None, description="Shape ab: response A.")
    b: MappedPath = Field(None, description="Shape ab: response B.")
    a_source: MappedPath = Field(None, description="Shape ab: source of response A.")
    b_source: MappedPath = Field(None, description="Shape ab: source of response B.")
    responses: MappedPath = Field(None, description="Shape list: the responses, e.g. `completions[].text`.")
    rewards: MappedPath = Field(None, description="Shape list: a reward per response, null = not measured. Same as `label.scores`.")
    ranks: MappedPath = Field(None, description="Shape list: a rank per response, 1 = best. Same as `label.ranks`.")
    sources: MappedPath = Field(None, description="Shape list: a source per response.")
    response: MappedPath = Field(None, description="Shapes rows, unpaired and single: the response of the row.")
    source: MappedPath = Field(None, description="One source for all responses of the row.")
    task: MappedPath = Field(None, description="Kind of prompt, e.g. `math`: results are then also given per task.")
    split: MappedPath = Field(None, description="Split of the row; see `splits`.")
    weight: MappedPath = Field(None, description="Weight of the record.")
    label_probability: MappedPath = Field(
        None,
        description="Probability that the row's label is right, in [0, 1]: share of the votes for the preferred response, or a trust in "
        "the labeller. Losses on pairs train on it as a soft label.",
    )


Score: TypeAlias = PathText | TwoScores


class WinnerLabel(StrictModel):
    """The winner is named: `{column: winner, a: model_a, b: model_b, tie: [tie, both_bad]}`."""

    column: PathText = Field(description="Where the winner's name is.")
    a: Values = Field(min_length=1, description="Values that prefer response A.")
    b: Values = Field(min_length=1, description="Values that prefer response B.")
    tie: Values = Field(default_factory=list, description="Values that prefer neither.")
    check: list[TwoScores] = Field(
        default_factory=list, description="Scores that must agree with the winner; a row where they don't is a problem."
    )

    @model_validator(mode="after")
    def _check(self) -> WinnerLabel:
        disjoint({"a": self.a, "b": self.b, "tie": self.tie})
        return self


class SignedLabel(StrictModel):
    """A signed strength: `{column: preference_strength, positive: b, tie_band: 0}`; a scale from 1 to 7 with `zero: 4`."""

    column: PathText = Field(description="Where the number is.")
    positive: Literal["a", "b"] = Field(description="The response that a positive number prefers.")
    tie_band: float = Field(0.0, ge=0, le=1e9, description="Numbers of at most this size prefer neither.")
    zero: float = Field(
        0.0,
        ge=-1e9,
        le=1e9,
        exclude_if=lambda value: value == 0,
        description="Number that prefers neither, subtracted first: 4 of a scale 1–7.",
    )


class IndexLabel(StrictModel):
    """The index of the best response: `{column: choice, index_base: 0}`."""

    column: PathText = Field(description="Where the index is.")
    index_base: Literal[0, 1] = Field(description="Index of the first response.")
    tie: Values = Field(default_factory=list, description="Values that prefer none.")


class ScoresLabel(StrictModel):
    """One or several scores per response: `{scores: [ratings]}`, `{scores: [{a: score_0, b: score_1}]}`."""

    scores: list[Score] = Field(
        min_length=1, max_length=32, description="Paths of scores, larger is better; for two responses also {a, b} or {chosen, rejected}."
    )
    weights: list[float] | WeightColumn | SampledWeights | None = Field(
        None,
        description="Weight of each score in the reward, needed for more than one: numbers, or by prompt {column: path} or {sampled: 1}.",
    )
    say: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        exclude_if=is_empty,
        description="Text in front of the prompt that states the prompt's weights: `Helpfulness {w1}, harmlessness {w2}.`",
    )
    missing: list[str] = Field(
        default_factory=list, description='Further texts that mean "not measured", beside "", "N/A", "NA", "null", "none" and "nan".'
    )
    contradiction: Literal["refuse", "scores"] = Field(
        "refuse", description="Shape pair, where `rejected` has the larger score: refuse the row, or let the scores decide."
    )

    @model_validator(mode="after")
    def _check(self) -> ScoresLabel:
        if self.weights is None and len(self.scores) > 1:
            raise ValueError(f"{len(self.scores)} scores need `weights`, one number each")
        if not isinstance(self.weights, list):
            return self._check_weights_by_prompt()
        if self.say is not None:
            raise ValueError("`say` states weights that differ by prompt, and these are the same for all")
        if len(self.weights) != len(self.scores):
            raise ValueError(f"{len(self.weights)} weights for {len(self.scores)} scores")
        if not all(abs(w) < 1e9 for w in self.weights):  # NaN compares false
            raise ValueError("weights must be finite numbers below 1e9")
        if not any(self.weights):
            raise ValueError("at least one weight must differ from 0")
        return self

    def _check_weights_by_prompt(self) -> ScoresLabel:
        if self.weights is None:
            if self.say is not None:
                raise ValueError("`say` states weights by prompt; give `weights: {column: path}` or `weights: {sampled: 1}`")
            return self
        if len(self.scores) == 1:
            raise ValueError("weights by prompt need at least two scores")
        if self.say is None:
            raise ValueError('weights by prompt need `say`, or the policy cannot see them: `say: "Helpfulness {w1}, harmlessness {w2}."`')
        names = {f"w{i + 1}" for i in range(len(self.scores))}
        if set(placeholders(self.say)) != names:
            raise ValueError(f"`say` needs each of {', '.join(f'{{{name}}}' for name in sorted(names))}: weights in the order of `scores`")
        return self


class RanksLabel(StrictModel):
    """A rank per response, the smallest is the best: `{ranks: answers[].rank, base: 1}`."""

    ranks: Score = Field(description="Path of the ranks; for two responses also {a, b} or {chosen, rejected}.")
    base: Literal[0, 1] = Field(description="Rank of the best response.")


class UnpairedLabel(StrictModel):
    """Approval of a single response: `{column: label, true: [true, thumbs_up], false: [false, thumbs_down]}`."""

    column: PathText = Field(description="Where the approval is.")
    true: Values = Field(min_length=1, description="Values of a desirable response.")
    false: Values = Field(min_length=1, description="Values of an undesirable response.")
    skip: Values = Field(default_factory=list, description="Values of rows without feedback; those rows are left out and counted.")

    @model_validator(mode="after")
    def _check(self) -> UnpairedLabel:
        disjoint({"true": self.true, "false": self.false, "skip": self.skip})
        return self


_VARIANTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("winner", frozenset({"a", "b"})),
    ("signed", frozenset({"positive", "tie_band", "zero"})),
    ("index", frozenset({"index_base"})),
    ("ranks", frozenset({"ranks", "base"})),
    ("unpaired", frozenset({"true", "false", "skip"})),
    ("scores", frozenset({"scores", "weights", "say", "contradiction", "missing"})),
)
_VARIANT_OF_CLASS = {
    "WinnerLabel": "winner",
    "SignedLabel": "signed",
    "IndexLabel": "index",
    "RanksLabel": "ranks",
    "UnpairedLabel": "unpaired",
    "ScoresLabel": "scores",
}


def _variant(value: Any) -> str | None:
    if not isinstance(value, dict):
        return _VARIANT_OF_CLASS.get(type(value).__name__)
    return next((name for name, keys in _VARIANTS if keys & value.keys()), None)


def _text_keys(value: Any) -> Any:
    """YAML reads the keys `true` and `false` as booleans."""
    return {str(k).lower() if isinstance(k, bool) else k: v for k, v in value.items()} if isinstance(value, dict) else value


Label: TypeAlias = Annotated[
    Annotated[WinnerLabel, Tag("winner")]
    | Annotated[SignedLabel, Tag("signed")]
    | Annotated[IndexLabel, Tag("index")]
    | Annotated[RanksLabel, Tag("ranks")]
    | Annotated[UnpairedLabel, Tag("unpaired")]
    | Annotated[ScoresLabel, Tag("scores")],
    Discriminator(
        _variant,
        custom_error_type="label",
        custom_error_message=(
            "a label is one of: {column, a, b, tie} names the winner; {column, positive: a|b, tie_band, zero} a signed number; "
            "{column, index_base: 0|1} the index of the best; {scores: [path], weights} scores; {ranks: path, base: 0|1} ranks; "
            "{column, true: [...], false: [...]} approval of one response"
        ),
    ),
    BeforeValidator(_text_keys),
]
"""Which response is preferred: exactly one of the variants, recognised by its keys."""

LABELS_OF_SHAPE: dict[str, tuple[type[StrictModel], ...]] = {
    "pair": (ScoresLabel,),
    "list": (ScoresLabel, RanksLabel, IndexLabel),
    "ab": (WinnerLabel, SignedLabel, IndexLabel, ScoresLabel, RanksLabel),
    "unpaired": (UnpairedLabel,),
    "rows": (ScoresLabel, RanksLabel, UnpairedLabel),
    "tree": (),
    "single": (),
}
"""Label variants that a shape can have."""

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

DEFAULT_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Roles of the dialects in use; case is ignored."""


class Messages(StrictModel):
    """How conversations are written, and what happens to parts that a text policy cannot see."""

    role: str | None = Field(None, min_length=1, max_length=64, description="Key of the role; null: `role`, or `from` as in ShareGPT.")
    content: str | None = Field(
        None, min_length=1, max_length=64, description="Key of the text; null: `content`, or `value` as in ShareGPT."
    )
    roles: dict[str, Role] = Field(default_factory=dict, description="Further role names → system, user, assistant or tool.")
    parts: Literal["text", "refuse"] = Field(
        "text", description="Content given as a list of parts. text: join the text parts, refuse a row with any other part."
    )
    reasoning: Literal["refuse", "drop", "keep"] = Field(
        "refuse",
        description="reasoning_content, thinking: refuse the row, leave it out (counted), or keep it in <think>…</think> in front.",
    )
    templated: Literal["refuse", "parse", "text"] = Field(
        "refuse",
        description="Text that already holds a chat "
        "template. refuse: the row; parse: "
        "ChatML, Llama 2 "
        "and 3, HelpSteer "
        "and Beaver into messages; "
        "text: leave it, unless it holds special tokens.",
    )
    tools: Literal["refuse", "keep"] = Field(
        "refuse", description="Tool calls and tool definitions in the prompt: refuse the row, or keep them."
    )
    implicit: Literal["marker", "longest"] = Field(
        "marker",
        description="Plain responses that begin with "
        "their prompt, without a prompt "
        "column. marker: "
        "cut at a turn "
        "marker (`Human:`, "
        "`A:`, `###`); "
        "longest: also at the last line break or white space of the common beginning.",
    )
    differ: Literal["refuse", "cut"] = Field(
        "refuse", description="Conversations that differ before their last message: refuse the row, or cut them at the first difference."
    )
    learn_turns: Literal["last", "all"] = Field(
        "last",
        exclude_if=lambda value: value == "last",
        description="Conversations as responses. last: the response is the last message, all before it is the prompt; all: the response "
        "is every turn from where the conversations of a row part (of a single one: from the assistant's first), and log π is summed over "
        "the turns of the assistant. Needs a chat template that renders an earlier turn as it rendered the last one.",
    )

    @model_validator(mode="after")
    def _check(self) -> Messages:
        if (self.role is None) != (self.content is None):
            raise ValueError("`role` and `content` are given together, or neither")
        if self.role is not None and self.role == self.content:
            raise ValueError(f"`role` and `content` are the same key {self.role!r}")
        if self.learn_turns == "all" and self.differ == "cut":
            raise ValueError("`differ: cut` leaves out the turns that `learn_turns: all` learns; write one of the two")
        return self


class Context(StrictModel):
    """What precedes the prompt, in columns of its own."""

    system: MappedPath = Field(None, description="System prompt; null and blank values give none.")
    history: MappedPath = Field(None, description="Earlier turns: pairs [user, assistant], or messages.")
    input: MappedPath = Field(None, description="Text joined to the prompt by an empty line (Alpaca's `input`).")
    tools: MappedPath = Field(None, description="Tool definitions for the chat template; needs `messages.tools: keep`.")


class Group(StrictModel):
    """Shape rows: which rows are responses to one prompt."""

    by: PathText | None = Field(None, description="Key of a group, e.g. `prompt_id`; null: the prompt itself, its context included.")


class Tree(StrictModel):
    """Shape tree: one message per row (OASST), or whole trees (`replies`)."""

    id: PathText = Field("message_id", description="Id of a message.")
    parent: PathText = Field("parent_id", description="Id of the message that is answered; null at the root.")
    role: PathText = Field("role", description="Role of the author.")
    text: PathText = Field("text", description="Text of the message.")
    rank: PathText = Field("rank", description="Rank among the answers to one message.")
    rank_base: Literal[0, 1] = Field(0, description="Rank of the best answer.")
    replies: PathText | None = Field(None, description="Nested trees: list of answers inside a message; null: one message per row.")
    root: PathText | None = Field(None, description="Nested trees: where the first message is in a row; null: the row itself.")


class Adapter(StrictModel):
    """How the rows of one input become canonical records."""

    preset: str = Field(
        "auto",
        min_length=1,
        max_length=64,
        description="auto: use the one preset that fits, and name it; none: only what is written here; or a name.",
    )
    shape: Shape | None = Field(
        None,
        description="pair: chosen, rejected; list: responses in one row; ab: two "
        "responses and a winner; unpaired: one response and an approval; "
        "rows: one response per row, grouped; tree: a tree of messages; single: one trusted response. null: by preset or columns.",
    )
    columns: AdapterColumns = Field(default_factory=AdapterColumns, description="Where each canonical field is in a row.")
    label: Label | None = Field(None, description="Which response is preferred.")
    votes: Votes | None = Field(
        None, exclude_if=is_empty, description="Shapes pair and ab: votes on the pair, as the probability that its label is right."
    )
    messages: Messages = Field(default_factory=Messages, description="How conversations are written.")
    context: Context = Field(default_factory=Context, description="System prompt, history, input and tools in columns of their own.")
    group: Group = Field(default_factory=Group, description="Shape rows: which rows belong together.")
    tree: Tree | None = Field(None, description="Shape tree: where the parts of a message are.")
    splits: dict[str, Literal["train", "eval"]] = Field(
        default_factory=dict,
        description="Values of the split column → train or eval, beside the usual names (train; test, validation, dev, …).",
    )
    carry: list[PathText] = Field(
        default_factory=list, max_length=256, description="Columns kept beside the record, for groups in evaluation."
    )
    ignore: list[PathText] = Field(default_factory=list, max_length=1024, description="Columns that are decided to be left out.")
    leave_out: dict[PathText, Values] = Field(
        default_factory=dict,
        max_length=64,
        exclude_if=is_empty,
        description="Rows to leave out, by the value of a column: `{status: [discarded], is_deleted: [true]}`. They are counted.",
    )

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        errors = list(_conflicts(self))
        if errors:
            raise ValueError("; ".join(errors))
        return self


def paths_of(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """(place, path) of everything an adapter reads into a record; ``carry`` and ``ignore`` are not among them."""
    for name in AdapterColumns.model_fields:
        path = getattr(adapter.columns, name)
        if isinstance(path, str):
            yield f"columns.{name}", path
    yield from _label_paths(adapter.label)
    if adapter.votes is not None:
        yield from ((f"votes.{key}", path) for key, path in adapter.votes.paths)
    for name in Context.model_fields:
        path = getattr(adapter.context, name)
        if isinstance(path, str):
            yield f"context.{name}", path
    if adapter.group.by is not None:
        yield "group.by", adapter.group.by
    if adapter.tree is not None:
        names = ("root",) if adapter.tree.replies is not None else ("id", "parent", "role", "text", "rank")
        for name in names:
            path = getattr(adapter.tree, name)
            if path is not None:
                yield f"tree.{name}", path
    yield from (("leave_out", path) for path in adapter.leave_out)


def _label_paths(label: Label | None) -> Iterator[tuple[str, str]]:
    if isinstance(label, ScoresLabel | RanksLabel):
        scores = label.scores if isinstance(label, ScoresLabel) else [label.ranks]
        place = "label.scores" if isinstance(label, ScoresLabel) else "label.ranks"
        for score in scores:
            yield from ((place, path) for path in ((score,) if isinstance(score, str) else score.paths))
        if isinstance(label, ScoresLabel) and isinstance(label.weights, WeightColumn):
            yield "label.weights", label.weights.column
    elif label is not None:
        yield "label.column", label.column
        if isinstance(label, WinnerLabel):
            yield from (("label.check", path) for check in label.check for path in check.paths)


def roots_of(path: str) -> list[str]:
    """Columns that a path begins with, one for each alternative."""
    return [str(steps[0]) for steps in parse_path(path)]


def _conflicts(adapter: Adapter) -> Iterator[str]:
    shape, label = adapter.shape, adapter.label
    if shape is not None and label is not None and not isinstance(label, LABELS_OF_SHAPE[shape]):
        allowed = ", ".join(kind.__name__.removesuffix("Label").lower() for kind in LABELS_OF_SHAPE[shape]) or "none"
        yield (
            f"shape {shape} cannot have a label of the kind "
            f"{type(label).__name__.removesuffix('Label').lower()}; "
            f"kinds it can have: {allowed}"
        )
    if isinstance(label, ScoresLabel | RanksLabel):
        scores = label.scores if isinstance(label, ScoresLabel) else [label.ranks]
        two_sided = any(isinstance(score, TwoScores) for score in scores)
        if isinstance(label, ScoresLabel) and label.say is not None and shape == "rows":
            yield "weights by prompt are read in the shapes pair, ab and list, and shape is rows"
        if two_sided and shape in ("list", "rows"):
            yield f"shape {shape} takes paths as scores and ranks, not two paths {{a, b}}"
        if any(isinstance(s, TwoScores) and s.a is not None for s in scores) and shape == "pair":
            yield "shape pair names its scores {chosen, rejected}, not {a, b}"
        if any(isinstance(s, TwoScores) and s.chosen is not None for s in scores) and shape == "ab":
            yield "shape ab names its scores {a, b}, not {chosen, rejected}"
        for name in ("rewards", "ranks"):
            if isinstance(getattr(adapter.columns, name), str):
                yield f"`columns.{name}` and `label` both say which response is better: keep one of them"
    if adapter.votes is not None:
        yield from _conflicts_of_votes(adapter)
    if adapter.tree is not None and shape not in (None, "tree"):
        yield f"`tree` is for shape tree, and shape is {shape}"
    if adapter.leave_out and (shape == "tree" or adapter.tree is not None) and (adapter.tree is None or adapter.tree.replies is None):
        yield "`leave_out` would take messages out of the middle of trees: take the trees out of the file"
    if adapter.group.by is not None and shape not in (None, "rows"):
        yield f"`group.by` is for shape rows, and shape is {shape}"
    if isinstance(adapter.context.tools, str) and adapter.messages.tools != "keep":
        yield "`context.tools` needs `messages: {tools: keep}`"
    if adapter.columns.sources and adapter.columns.source:
        yield "`columns.sources` (one per response) and `columns.source` (one per row) exclude each other"
    read = {path: place for place, path in paths_of(adapter)}
    for path in adapter.ignore:
        if path in read:
            yield f"`ignore` names {path!r}, which `{read[path]}` reads"
        if path in adapter.carry:
            yield f"{path!r} is under both `carry` and `ignore`"


def _conflicts_of_votes(adapter: Adapter) -> Iterator[str]:
    shape, votes = adapter.shape, adapter.votes
    assert votes is not None
    if shape not in (None, "pair", "ab"):
        yield f"`votes` are on two responses (shapes pair and ab), and shape is {shape}"
    if isinstance(adapter.columns.label_probability, str):
        yield "`columns.label_probability` and `votes` both give the probability of the label: keep one of them"
    named = None if votes.counts is None else "a" if votes.counts.a is not None else "chosen"
    if (shape, named) in (("pair", "a"), ("ab", "chosen")):
        yield f"shape {shape} names its votes {'{chosen, rejected}' if shape == 'pair' else '{a, b}'}"
