"""Settings of the method, typed, described and bounded: the configuration is the manual.

Imports only pydantic and the syntax of paths, so that ``dora --help`` and the planner start quickly. Sections follow the pipeline: text →
models → classifier → calibration → training → generation → evaluation. Data is ``data.py``; alignment, which reads the registries of losses
and objectives, is ``alignment.py``. Settings of speed (workers, micro-batches) are ``execution.py``: they never enter a digest, as they do
not change the result beyond float tolerance.

Left out: file paths of outputs (the store owns them) and settings of servers (``infra/settings.py``).
"""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from dora_core.config.path_syntax import PathText
from dora_core.config.twins import TWINS, TwinName
from dora_core.strict_model import REVISION_PATTERN, StrictModel, is_empty

# --------------------------------------------------------------------------------------------------------------- text


RENDERED_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "strftime_now", "tokenize"}
)
"""Names in a chat template's scope that no argument may replace."""


class TextConfig(StrictModel):
    """Templates and the one truncation rule of all stages: prompts keep their end, responses keep their beginning."""

    template: Literal["auto", "chat", "plain"] = Field(
        "auto", description="auto: the tokenizer's chat template when it has one, else plain text."
    )
    max_prompt_tokens: int = Field(512, ge=8, le=131_072, description="Longer prompts lose their first tokens.")
    max_response_tokens: int = Field(512, ge=4, le=131_072, description="Longer responses lose their last tokens.")
    system: Literal["refuse", "merge"] = Field(
        "refuse",
        exclude_if=lambda value: value == "refuse",
        description="Where the chat template takes no system message: refuse the run, or merge it into the user message after it.",
    )
    template_date: str | None = Field(
        None,
        pattern=r"^\d{4}-\d\d-\d\d$",
        exclude_if=is_empty,
        description="Day that a chat template with a date shows, as 2026-03-01; null = a fixed day, the same in every run.",
    )
    template_arguments: dict[str, JsonValue] = Field(
        default_factory=dict, exclude_if=is_empty, description="Further variables of the chat template, e.g. `enable_thinking: false`."
    )
    chat_tokens: int | None = Field(
        None,
        ge=1,
        exclude_if=is_empty,
        description="Version of the rules that tokenise chats; the plan fills it in for models with a chat template.",
    )

    @field_validator("template_date")
    @classmethod
    def _a_day(cls, given: str | None) -> str | None:
        if given is not None:
            date.fromisoformat(given)
        return given

    @field_validator("template_arguments")
    @classmethod
    def _free_names(cls, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(given.keys() & RENDERED_NAMES):
            raise ValueError(f"{', '.join(taken)}: given by the data or by other settings of `text`, not as an argument of the template")
        try:
            json.dumps(given, allow_nan=False)
        except ValueError:
            raise ValueError("numbers must be finite") from None
        return given


# ------------------------------------------------------------------------------------------------------------- models


class ModelConfig(StrictModel):
    """Hugging Face model by id or local path, or the embedded ``tiny`` one built from scratch on the data."""

    source: str = Field("tiny", min_length=1, description="`tiny` (from scratch), a Hugging Face id, or a local folder.")
    revision: str | None = Field(None, pattern=REVISION_PATTERN, description="Pinned commit; needed for trust_remote_code.")
    content: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Digest of a local folder's files; the plan fills it in.")
    base_revision: str | None = Field(
        None,
        pattern=REVISION_PATTERN,
        exclude_if=is_empty,
        description="Commit of the base of an adapter in a local folder; the plan fills it in.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Needs `revision`.")
    hidden_size: int = Field(128, ge=16, le=1024, multiple_of=16, description="tiny only: width.")
    layers: int = Field(2, ge=1, le=24, description="tiny only: depth.")
    heads: int = Field(4, ge=1, le=32, description="tiny only: attention heads; must divide hidden_size.")
    vocab_size: int = Field(2048, ge=300, le=65_536, description="tiny only: size of the byte-level BPE vocabulary trained on the data.")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")
        if self.trust_remote_code and self.revision is None:
            raise ValueError("trust_remote_code needs `revision`: the 40 hex digits of the commit you have read")
        return self

    @property
    def is_tiny(self) -> bool:
        return self.source == "tiny"


DEFAULT_REPLAY = 0.25


class PolicyConfig(ModelConfig):
    """The model to align, and where a run of a project starts: from that model, or from the champion of the night before."""

    start: Literal["base", "champion"] = Field(
        "base",
        exclude_if=lambda start: bool(start == "base"),
        description="base: align the model (or its supervised start) on all records; champion: continue from the project's champion on the "
        "records that are new since its run, with the champion as reference.",
    )
    replay: float = Field(
        DEFAULT_REPLAY,
        ge=0,
        le=0.9,
        exclude_if=lambda replay: bool(replay == DEFAULT_REPLAY),
        description="start champion: share of the training records that are drawn from those the champion's run had.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_model(cls, given: Any) -> Any:
        plain = isinstance(given, ModelConfig) and not isinstance(given, PolicyConfig)
        return given.model_dump(exclude_unset=True) if plain else given

    @property
    def model(self) -> ModelConfig:
        """The model alone, as stages read it: the start is another input of theirs."""
        own = self.model_dump(exclude_unset=True)
        return ModelConfig.model_validate({name: value for name, value in own.items() if name in ModelConfig.model_fields})


def _is_merged(result: object) -> bool:
    return result == "merged"


class LoraConfig(StrictModel):
    """Low-rank adapters (through peft); the merged weights are what later stages see."""

    rank: int = Field(16, ge=1, le=512, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale; the update is alpha/rank · BA.")
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Dropout on the adapter input. 0 keeps the policy equal to the reference at step 0."
    )
    target_modules: str | list[str] = Field(
        "all-linear", description="Module names, a regular expression, or all-linear: all but embedding, head and routers of experts."
    )
    target_parameters: list[str] = Field(
        default_factory=list,
        exclude_if=is_empty,
        description="Weights that are no modules, such as experts in one tensor: `[experts.gate_up_proj, experts.down_proj]`.",
    )
    modules_to_save: list[str] = Field(default_factory=list, exclude_if=is_empty, description="Modules that are trained whole.")
    rank_stabilized: bool = Field(False, exclude_if=is_empty, description="rsLoRA: the update is alpha/√rank · BA (arXiv 2312.03732).")
    weight_decomposed: bool = Field(
        False, exclude_if=is_empty, description="DoRA adapters: magnitude and direction of a weight are trained apart (arXiv 2402.09353)."
    )
    result: Literal["merged", "adapter"] = Field(
        "merged",
        exclude_if=_is_merged,
        description="adapter: besides the merged `model/`, the stage keeps `adapter/`, for servers that hold many over one base.",
    )


# --------------------------------------------------------------------------------------------- classifier, calibration


class ClassifierConfig(StrictModel):
    """Source classifiers: one shared encoder, one head per synthetic source, cross-fitted by prompt."""

    encoder: ModelConfig = Field(default_factory=ModelConfig, description="Encoder; tiny is a small BERT from scratch.")
    folds: int = Field(3, ge=2, le=20, description="Cross-fitting folds; a prompt's fold is a hash of the prompt.")
    deep: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether the encoder is tried on top of n-grams and text statistics; auto: from deep_from fitting rows on."
    )
    deep_from: int = Field(10_000, ge=0, description="deep = auto: responses of a fold's fit from which the encoder has been seen to help.")
    epochs: float = Field(3.0, gt=0, le=100, description="Passes over the training responses, per fold.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak AdamW learning rate (about 3e-5 for a pretrained encoder).")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW weight decay.")
    batch_tokens: int = Field(8192, ge=64, description="Padded tokens per training batch.")
    max_prompt_tokens: int = Field(64, ge=0, le=8192, description="Prompt tokens the classifier sees; 0 = response only.")
    max_response_tokens: int = Field(192, ge=4, le=8192, description="Response tokens the classifier sees.")
    max_responses_per_source: int = Field(20_000, ge=50, description="Cap per source on fitting data, chosen by hash.")
    scaling: Literal["temperature", "isotonic", "none"] = Field(
        "temperature", description="Map from logits to probabilities, fitted per head on held-out folds."
    )
    refit: Literal["auto", "always", "never"] = Field(
        "auto", description="auto keeps the previous classifier while it still fits the new data, by the thresholds of `drift`."
    )
    seed: int = Field(0, ge=0)

    def tries_encoder(self, rows: int) -> bool:
        """Whether a fold with this many fitting rows fits the deep part."""
        return self.deep == "always" or (self.deep == "auto" and rows >= self.deep_from)


class CalibrationConfig(StrictModel):
    """From density ratios to one factor h per response, arXiv 2504.05831."""

    form: Literal["mixture", "paper", "released"] = Field(
        "mixture", description="mixture: exact p_golden/P; paper: the paper's formula; released: the authors' code."
    )
    ratio: Literal["conditional", "joint"] = Field(
        "conditional",
        description="conditional: ratio of responses given the prompt, p(y|x)/q(y|x), as in the paper; joint: of prompts and responses.",
    )
    shares: dict[str, float] | None = Field(None, description="Mixture share per source, summing to 1; null = counts.")
    normalize: bool = Field(True, description="Scale h to mean 1.")
    cap_quantile: float | None = Field(0.99, gt=0.5, le=1.0, description="Cap h at this quantile; null = no cap.")
    temper: float | Literal["auto"] = Field(
        "auto", description="h^τ with τ in [0, 1]; auto: the largest τ that keeps the effective sample size above ess_floor."
    )
    ess_floor: float = Field(0.5, gt=0, le=1.0, description="auto temper: floor of (Σh)²/(N·Σh²).")
    balance: Literal["report", "enforce"] = Field(
        "report",
        description="Means of text statistics under h beside golden ones; enforce: tilt h until they agree (entropy balancing).",
    )
    aggregate: Literal["mean", "min", "chosen", "product"] = Field("mean", description="How a record's h follows from its responses'.")

    @model_validator(mode="after")
    def _check(self) -> CalibrationConfig:
        if isinstance(self.temper, float) and not 0.0 <= self.temper <= 1.0:
            raise ValueError(f"temper={self.temper} must lie in [0, 1] or be 'auto'")
        if self.shares is not None:
            bad = {name: share for name, share in self.shares.items() if not 0.0 < share <= 1.0}
            if bad:
                raise ValueError(f"shares must lie in (0, 1], got {bad}")
            if abs(sum(self.shares.values()) - 1.0) > 1e-6:
                raise ValueError(f"shares must sum to 1, got {sum(self.shares.values()):.6f}")
        return self


# ----------------------------------------------------------------------------------------------------------- training


class OptimizationConfig(StrictModel):
    """Optimisation of one training stage; every field changes the result and enters the digest."""

    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the data; the last partial batch is used.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimisation steps.")
    batch_size: int = Field(32, ge=1, description="Records per optimisation step over all ranks and micro-batches.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak AdamW learning rate.")
    warmup_fraction: float = Field(0.1, ge=0, le=0.9, description="Share of steps with linear warm-up.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Decay after warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the global gradient norm; null = no clipping.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast on bfloat16 with float32 master weights.")
    lora: LoraConfig | None = Field(None, description="Train low-rank adapters instead of all weights.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        exclude_if=lambda value: value == "adamw",
        description="adamw_8bit: moments in 8 bits, 2 bytes a trained weight in place of 8; needs the extra `quantised`.",
    )
    router_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda value: not value,
        description="Weight of the loss that balances the load of a mixture's experts (Switch Transformers), over the whole step; usual "
        "values are .001 to .02. A step then costs 7/3 of its computation. 0: none.",
    )
    seed: int = Field(0, ge=0, description="Seed of data order and initial adapters.")


class SftConfig(StrictModel):
    """Supervised start: the policy learns trusted responses before alignment. Needed for the tiny policy."""

    enabled: bool = Field(True, description="false: align from the model as it is (not possible with tiny).")
    data: Literal["golden", "best"] = Field("golden", description="golden: trusted responses; best: each record's best response.")
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig, description="Optimisation.")


# --------------------------------------------------------------------------------------------- generation, known mixture


class GenerateConfig(StrictModel):
    """Sampling responses from a policy."""

    samples: int = Field(1, ge=1, le=256, description="Responses per prompt.")
    temperature: float = Field(1.0, ge=0, le=10, description="Softmax temperature; 0 = greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus: the smallest set of tokens with at least this probability.")
    max_new_tokens: int = Field(256, ge=1, le=16_384, description="Longer responses are cut.")
    prompts: int | None = Field(None, ge=1, description="Sample for this many prompts only, chosen by hash; null = all.")
    seed: int = Field(0, ge=0, description="A response depends on (seed, prompt, sample number) only.")
    served_model: str | None = Field(
        None, min_length=1, description="Request responses of this model from `execution.generate.endpoint`; null = sample from the policy."
    )


class TestbedConfig(StrictModel):
    """Parameters of the known mixture (``dora_core/testbed/mixture.py``). Same configuration, same bytes."""

    __test__ = False  # pytest collects classes named Test…

    prompts: int = Field(600, ge=1, le=6144, description="Records: distinct prompts, at most 384 per topic.")
    responses_per_prompt: int = Field(4, ge=2, le=16, description="Responses per record, drawn independently from the mixture.")
    one_source_per_record: bool = Field(
        False, description="All responses of a record come from one source, which also labels it; false: each is drawn independently."
    )
    alpha: float = Field(0.25, gt=0.0, lt=1.0, description="Share α of the golden source; the rest is split evenly.")
    shift: float = Field(1.0, ge=0.0, le=4.0, description="Strength of all biases, in texts and labels; 0 = all sources are golden.")
    label_noise: float = Field(0.0, ge=0.0, le=1.0, description="Share of records whose reward order is reversed.")
    sources: int = Field(3, ge=1, le=5, description="Synthetic sources.")
    drift: float = Field(0.0, ge=-2.0, le=2.0, description="Added to shift per self-training round.")
    golden_shift: float = Field(
        0.0, ge=0.0, le=4.0, description="Bias of the separate golden reference towards the first synthetic source; 0 = truly golden."
    )
    unlabelled: float = Field(0.0, ge=0.0, le=1.0, description="Share of records whose responses do not name their source.")
    prompt_shift: float = Field(
        0.0, ge=0.0, le=4.0, description="How far the sources' topics differ; 0 = every source answers every topic alike."
    )
    topics: int = Field(16, ge=2, le=16, description="Topics in prompts and advice.")
    max_sentences: int = Field(6, ge=1, le=8, description="Most sentences between opener and closer.")
    seed: int = Field(0, ge=0, description="Seed of prompts, responses and labels.")


# --------------------------------------------------------------------------------------------------------- evaluation


class Grouping(StrictModel):
    """Groups of held-out records by the values of a column that is carried along (`data.train[i].carry`). A plain text stands for its
    `column`.

    Texts, truth values and lists are groups by their value. Numbers and times with more than `most` different values are cut into `bins`
    quantiles.
    """

    column: PathText = Field(description="Carried column, or a path into one, e.g. `annotator` or `info.subreddit`.")
    bins: int | None = Field(
        5, ge=2, le=20, description="Quantile bins of numbers and times; null = each value is a group, as for the ids of annotators."
    )
    most: int = Field(12, ge=2, le=50, description="Groups named: the largest. All further values are one group, `other`.")


def _grouping(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class EvaluateConfig(StrictModel):
    """Measurements on held-out prompts."""

    twins: list[TwinName] = Field(
        default_factory=list,
        description="Also train these and compare: erm (no robustness), golden_only and synthetic_only (part of the records, as many "
        "steps), golden_only_epochs (as many passes).",
    )
    bootstrap_samples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples, over prompts.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals.")
    kl_prompts: int = Field(64, ge=0, le=10_000, description="Held-out prompts sampled for KL(policy‖start); 0 = skip.")
    kl_max_new_tokens: int = Field(64, ge=1, le=4096, description="Tokens per sample for the KL estimate.")
    min_group: int = Field(20, ge=1, description="A group with fewer held-out prompts is reported, but never named the worst.")
    groups: list[Annotated[Grouping, BeforeValidator(_grouping)]] = Field(
        default_factory=list,
        max_length=8,
        exclude_if=is_empty,
        description="Carried columns by whose values accuracy is also reported, as by source and task: `[annotator, language]`.",
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _old_key(cls, given: Any) -> Any:
        if isinstance(given, dict) and "erm_twin" in given:
            line = "twins: [erm, golden_only, golden_only_epochs]" if given["erm_twin"] is True else "twins: []"
            raise ValueError(f"erm_twin is now one of several twins; write instead: {line}")
        return given

    @field_validator("twins")
    @classmethod
    def _each_once(cls, twins: list[TwinName]) -> list[TwinName]:
        """Return the twins in the order of ``TWINS``, which is part of no result."""
        if len(set(twins)) < len(twins):
            raise ValueError(f"{', '.join(twins)} names a twin twice")
        return [name for name in TWINS if name in twins]

    @field_validator("groups")
    @classmethod
    def _once(cls, groups: list[Grouping]) -> list[Grouping]:
        columns = [grouping.column for grouping in groups]
        if twice := [column for column in dict.fromkeys(columns) if columns.count(column) > 1]:
            raise ValueError(f"{', '.join(twice)} is there twice")
        return groups


class GateConfig(StrictModel):
    """Rules for promotion. The decision names every rule that is not met.

    A rule on an estimate with an interval reads its lower bound: the policy must be *shown* to be above the threshold. Where the interval
    contains the threshold, the evidence does not say: the rule is uncertain, and `when_uncertain` decides.
    """

    min_accuracy: float = Field(0.5, ge=0, le=1, description="Lower bound of held-out preference accuracy must exceed this.")
    min_lift: float = Field(
        0.0, ge=-1, le=1, description="Ranking accuracy (likelihood per token) minus that of the start must be at least this."
    )
    max_kl: float | None = Field(50.0, gt=0, description="KL(policy‖start) per response, nats; null = no limit.")
    max_golden_drop: float = Field(
        0.02, ge=0, le=1, description="Ranking accuracy on pairs with a golden response may fall by at most this against the start."
    )
    min_win_rate: float | None = Field(
        0.5, ge=0, le=1, description="Lower bound of the judged win rate against the start must exceed this; null = off."
    )
    min_win_rate_equal_length: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="The same of the win rate at equal length, so that a policy that only writes longer is not promoted; null = off.",
    )
    min_champion_win_rate: float | None = Field(
        0.45,
        ge=0,
        le=1,
        description="Lower bound of the judged win rate against the champion must be at least this, if one exists; null = off.",
    )
    max_benchmark_drop: float | None = Field(
        0.01,
        ge=0,
        le=1,
        exclude_if=lambda value: value == 0.01,
        description="The score of a benchmark (`benchmarks`) may fall by at most this against the start; null = no limit.",
    )
    when_uncertain: Literal["hold", "promote"] = Field(
        "hold",
        description="An interval contains the threshold of a rule: hold registers a challenger and leaves the decision to a person; "
        "promote counts the rule as met.",
    )
