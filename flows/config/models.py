"""The one configuration of a run, as a YAML file, a Prefect parameter or ``--set a.b=v``: of a realignment, or of a study.

Sections are the method's own models (``dora_core/config/method.py``); only the project, promotion, the study's grid and where things run
are added here. Left out: addresses of servers and the store, which are settings of the place, not of the run (``infra/settings.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dora_core.config.alignment import AlignConfig, Loss
from dora_core.config.benchmarks import BenchmarksConfig
from dora_core.config.data import DataConfig
from dora_core.config.execution import KL_NEEDS_MODEL, Execution, endpoint_mistake
from dora_core.config.judging import ImplicitJudge, Judge, LLMJudge, RewardModelJudge
from dora_core.config.method import (
    CalibrationConfig,
    ClassifierConfig,
    EvaluateConfig,
    GateConfig,
    GenerateConfig,
    ModelConfig,
    PolicyConfig,
    SftConfig,
    TestbedConfig,
    TextConfig,
)
from dora_core.config.rounds import DriftConfig, RoundsConfig
from dora_core.config.tuning import TuneConfig
from dora_core.config.twins import TWINS, TwinName
from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from dora_core.data.acceptance import Wanted, unpaired_inputs
from dora_core.data.presets.base import is_unpaired
from dora_core.errors import did_you_mean
from dora_core.evaluation.study_statistics import TABLES, TableName
from dora_core.objectives import Auto, find_objective
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import NAME_PATTERN, StrictModel, is_empty

ROBUST = "robust"
"""Stands for the configured robust objective in a study's lists of objectives."""


class PromotionConfig(StrictModel):
    """Whether an aligned model that passes the gate becomes the champion."""

    mode: Literal["auto", "ask", "never"] = Field(
        "auto", description="When the gate passes: auto promotes; ask waits until a person approves or rejects; never registers only."
    )
    ask_timeout_hours: float = Field(
        72.0, gt=0, le=720, description="mode ask: hours to wait for an answer; then the model stays challenger and the run ends."
    )
    model_name: str | None = Field(None, pattern=NAME_PATTERN, description="Name in the MLflow model registry; null = the project's name.")


class ReportConfig(StrictModel):
    """Content of a run's page besides numbers and names. It changes no result and no digest."""

    prompts: int = Field(
        0,
        ge=0,
        le=50,
        description="Held-out prompts with the responses of start and policy and the chosen one, in full; 0 = the page holds no text of "
        "the data and may leave the store.",
    )


class HeldOutGenerateConfig(GenerateConfig):
    """One response to each of some held-out prompts."""

    prompts: int | None = Field(512, ge=1, description="Held-out prompts, chosen by hash: the same for every policy; null = all.")


class ListGenerateConfig(GenerateConfig):
    """Several responses to a prompt, to make a list of."""

    samples: int = Field(4, ge=2, le=256, description="Responses per prompt.")


class CompareConfig(StrictModel):
    """Comparison of responses to held-out prompts with the start's, the champion's, and the chosen responses of the data."""

    judge: Judge = Field(default_factory=RewardModelJudge, description="The judge that scores them.")
    generate: HeldOutGenerateConfig = Field(default_factory=HeldOutGenerateConfig, description="How they are sampled, whatever the policy.")
    champion: bool = Field(True, description="Also compare with the registry's champion.")

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        if isinstance(self.judge, ImplicitJudge):
            raise ValueError("judge.kind=implicit cannot compare policies: each would be judged by itself; use reward_model, llm or gold")
        if isinstance(self.judge, LLMJudge) and self.judge.against != "given":
            raise ValueError(
                "judge.against must be given: scores of responses compared with each other do not compare with another policy's"
            )
        if self.generate.served_model is not None:
            raise ValueError("generate.served_model: policies are compared by their own responses; leave it out")
        return self


class ExecutionConfig(StrictModel):
    """Resources per stage: a stage's section, with `default` for the keys that it leaves out. Never part of a digest."""

    default: Execution = Field(default_factory=Execution, description="For all stages, unless their section overrides it.")
    classify: Execution | None = Field(None, description="Fitting the source classifiers.")
    calibrate: Execution | None = Field(None, description="Scoring responses with the classifiers.")
    value: Execution | None = Field(None, description="Trust in labels and their exchange rates.")
    race: Execution | None = Field(None, description="The race of objective auto.")
    drift: Execution | None = Field(None, description="Scoring new data with the last run's classifiers.")
    sft: Execution | None = Field(None, description="Supervised start.")
    reference: Execution | None = Field(None, description="Reference log-probabilities.")
    align: Execution | None = Field(None, description="Alignment.")
    evaluate: Execution | None = Field(None, description="Evaluation.")
    benchmarks: Execution | None = Field(None, description="Tasks of lm-eval.")
    reward: Execution | None = Field(None, description="Training the reward model.")
    generate: Execution | None = Field(None, description="Sampling responses, or requesting them from an endpoint.")
    judge: Execution | None = Field(None, description="Scoring responses, here or by an endpoint.")

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        said = {name: s.model_dump(exclude_unset=True) if isinstance(s, Execution) else s for name, s in given.items()}
        default = said.get("default")
        try:
            Execution.model_validate(default)
        except ValidationError:
            return given  # the mistake is reported once, at `default`
        assert isinstance(default, dict), "validated above"
        return {name: default | section if isinstance(section, dict) else section for name, section in said.items()}

    @model_validator(mode="after")
    def _check(self) -> ExecutionConfig:
        for name in type(self).model_fields:
            section = getattr(self, name)
            if section is not None and section.endpoint is not None and name not in ("generate", "judge"):
                raise ValueError(f"{name}.endpoint: only execution.generate and execution.judge use a server")
            if section is not None and section.stream_layers and name not in ("reference", "evaluate"):
                raise ValueError(
                    f"{name}.stream_layers: only execution.reference and execution.evaluate stream; for a model that no worker can hold, "
                    "generate and judge use a server (execution.generate.endpoint.url, execution.judge.endpoint.url), and training has "
                    "strategy fsdp"
                )
        return self

    def of(self, stage: str) -> Execution:
        return getattr(self, stage, None) or self.default


def _judge_mistake(key: str, judge: Judge, execution: ExecutionConfig) -> str | None:
    """Return the mistake of an endpoint that a judge lacks; an endpoint without a use is allowed."""
    endpoint = execution.of("judge").endpoint
    return endpoint_mistake(f"{key}.kind={judge.kind}", judge.asks_server, "execution.judge.endpoint.url", endpoint, may_idle=True)


class MethodConfig(StrictModel):
    """Settings that a realignment and a study share: of the method, and of the place where stages run."""

    example: ClassVar[str]
    """A documented configuration to start from."""

    project: str = Field("default", pattern=NAME_PATTERN, description="Name of the MLflow experiment and of the run history.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation.")
    policy: ModelConfig = Field(default_factory=ModelConfig, description="The model to align.")
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig, description="Source classifiers.")
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig, description="Calibration factors.")
    sft: SftConfig = Field(default_factory=SftConfig, description="Supervised start.")
    align: AlignConfig = Field(default_factory=AlignConfig, description="Alignment.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation.")
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="Resources per stage.")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.policy.is_tiny and not self.sft.enabled:
            raise ValueError("policy.source=tiny has random weights and needs a supervised start: set sft.enabled=true or name a model")
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        if self.execution.of("evaluate").stream_layers and self.evaluate.kl_prompts:
            raise ValueError(KL_NEEDS_MODEL)
        return self


class RealignConfig(MethodConfig):
    """Configuration of a realignment. Every key has a default except `data`."""

    example: ClassVar[str] = "infra/configs/demo.yaml"

    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The model to align, and the start of its alignment.")
    data: DataConfig = Field(description="Preference data.")
    gate: GateConfig = Field(default_factory=GateConfig, description="Promotion gate.")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="How far the data may move from the last run's.")
    trust: TrustConfig = Field(default_factory=TrustConfig, description="Trust in labels that are not people's.")
    exchange: ExchangeConfig = Field(default_factory=ExchangeConfig, description="Golden labels that labels of sources are worth.")
    race: RaceConfig = Field(default_factory=RaceConfig, description="Race of align.objective.name: auto.")
    tune: TuneConfig = Field(
        default_factory=TuneConfig,
        exclude_if=lambda tune: tune == TuneConfig(),
        description="Short trainings that `dora tune` and race.by: training compare.",
    )
    compare: CompareConfig | None = Field(default_factory=CompareConfig, description="Win rates on held-out prompts; null = none.")
    benchmarks: BenchmarksConfig | None = Field(None, exclude_if=is_empty, description="Tasks of lm-eval before and after; null = none.")
    promotion: PromotionConfig = Field(default_factory=PromotionConfig, description="Promotion.")
    report: ReportConfig = Field(
        default_factory=ReportConfig, exclude_if=lambda report: report == ReportConfig(), description="The run's page."
    )

    @model_validator(mode="after")
    def _check_endpoints(self) -> Self:
        if self.compare is not None and (mistake := _judge_mistake("compare.judge", self.compare.judge, self.execution)):
            raise ValueError(mistake)
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        """Refuse inputs known to be unpaired; a preset found by ``auto`` is known only with the rows, and refused by the plan."""
        refusal = unpaired_inputs(self.align.loss, [f"data.train[{i}]" for i, source in enumerate(self.data.train) if is_unpaired(source)])
        if refusal is not None:
            raise ValueError(f"{refusal.message}; {refusal.hint}")
        return self

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        inputs = [(name, i, source) for name in ("train", "eval", "golden") for i, source in enumerate(getattr(self.data, name))]
        several = next((f"data.{name}[{i}]" for name, i, source in inputs if source.messages.learn_turns == "all"), None)
        if several is not None and (self.policy.is_tiny or self.text.template == "plain"):
            key = "policy.source=tiny" if self.policy.is_tiny else "text.template=plain"
            raise ValueError(
                f"{several}.messages.learn_turns=all: {key} has no chat template, and without one it is not defined how a response of "
                "several turns is read; name a model with a chat template, or leave learn_turns out"
            )
        return self

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        loss, objective = self.align.loss, self.align.objective.name
        if self.trust.apply == "soft_label" and not loss.reads_label_probability:
            raise ValueError(
                f"trust.apply=soft_label: align.loss.name={loss.name} does not read how sure a label is; use a pairwise loss such as dpo, "
                "or trust.apply: weight"
            )
        voted = next((f"data.train[{i}].votes" for i, source in enumerate(self.data.train) if source.votes is not None), None)
        if voted is not None and not loss.reads_label_probability and self.align.label_probability == "use":
            raise ValueError(
                f"{voted} make soft labels, which align.loss.name={loss.name} does not read; use a loss on pairs such as dpo, "
                "or align.label_probability: ignore"
            )
        if self.trust.apply == "soft_label" and self.align.label_probability == "ignore":
            raise ValueError("trust.apply=soft_label contradicts align.label_probability=ignore; set one of the two")
        if self.trust.apply != "off" and self.races:
            raise ValueError(
                f"trust.apply={self.trust.apply}: with align.objective.name=auto the race decides whether labels are softened; leave it "
                "off, or name an objective"
            )
        if self.trust.apply == "weight" and not self.needs_calibration:
            raise ValueError(
                f"trust.apply=weight multiplies h, and align.objective.name={objective} does not read h; use reweight or dora, "
                "or trust.apply: soft_label"
            )
        if self.data.goal is not None and self.needs_valuation:
            raise ValueError(
                "data.goal reverses preferences by the reward that a prompt asks for, which label trust, exchange rates and objective auto "
                "would take for disagreement; leave data.goal out, or those (trust.apply: off, exchange.enabled: false, another objective)"
            )
        return self

    @model_validator(mode="after")
    def _check_continuation(self) -> Self:
        if self.continues and (self.gate.max_kl is None or self.evaluate.kl_prompts == 0):
            raise ValueError(
                "policy.start=champion: every run starts where the last one ended, and only the gate bounds how far they move from the "
                "base; set gate.max_kl to a number and evaluate.kl_prompts above 0"
            )
        return self

    @property
    def continues(self) -> bool:
        """Whether alignment starts from the project's champion."""
        return self.policy.start == "champion"

    @property
    def model_name(self) -> str:
        return self.promotion.model_name or self.project

    @property
    def needs_valuation(self) -> bool:
        """Whether the stage ``value`` runs: for exchange rates, or for label probabilities that alignment or the race uses."""
        return self.exchange.enabled or self.trust.apply != "off" or self.races

    @property
    def races(self) -> bool:
        """Whether the race chooses the objective."""
        return self.align.objective.name == Auto.name

    @property
    def needs_calibration(self) -> bool:
        """Whether the objective reads h; for erm, dro and dr_dpo nothing is scored."""
        return find_objective(self.align.objective.name).uses_factors

    @property
    def wanted(self) -> Wanted:
        """What a run does with the data."""
        return Wanted(self.align.objective.name, self.needs_calibration, self.align.loss, tuple(self.evaluate.groups))


def _mistakes_of_votes(judge: Judge, align: AlignConfig) -> Iterator[str]:
    """Why verdicts of ``judge`` cannot become soft labels of ``align``."""
    if not isinstance(judge, LLMJudge) or judge.against != "each_other":
        yield "rounds.mix.vote_prior needs verdicts on samples against each other: judge: {kind: llm, against: each_other, …}"
    if not align.loss.reads_label_probability or align.label_probability == "ignore":
        yield (
            f"rounds.mix.vote_prior makes soft labels, and align (loss {align.loss.name}, label_probability {align.label_probability}) "
            "does not train on them; use a loss on pairs such as dpo"
        )


class SelfTrainConfig(RealignConfig):
    """A realignment and the rounds after it, in which the policy learns from its own judged samples."""

    example: ClassVar[str] = "infra/configs/self-train.yaml"

    rounds: RoundsConfig = Field(default_factory=RoundsConfig, description="Rounds: number, training data, guard rails.")
    generate: ListGenerateConfig = Field(default_factory=ListGenerateConfig, description="Samples of the train prompts, in every round.")
    judge: Judge = Field(default_factory=RewardModelJudge, description="The judge that labels them; unused by strategy selfie.")

    @property
    def labeller(self) -> Judge:
        """The judge that labels the samples."""
        if self.rounds.strategy != "selfie" or isinstance(self.judge, ImplicitJudge):
            return self.judge
        return ImplicitJudge()

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        mistakes = []
        if self.continues:
            mistakes.append("policy.start: rounds begin with a realignment from the base, and each starts from the last; set it to base")
        if self.generate.prompts is not None:
            mistakes.append("generate.prompts: rounds.prompts is the number of prompts of a round, other ones each round")
        if self.races and self.rounds.strategy != "raft" and self.rounds.mix.given_fraction == 0:
            mistakes.append(
                "align.objective.name: auto races in every round on golden preferences, and rounds.mix.given_fraction=0 keeps no given "
                "record; raise it, or name an objective"
            )
        if self.evaluate.twins:
            mistakes.append(
                "evaluate.twins compare one alignment; for rounds self-train again with align.objective.name=erm, or run a study"
            )
        if self.data.goal is not None:
            mistakes.append("data.goal: samples of the train prompts would be judged under every goal; rounds need prompts without goals")
        if self.rounds.mix.vote_prior is not None:
            mistakes += _mistakes_of_votes(self.labeller, self.align)
        served, endpoint = self.generate.served_model, self.execution.of("generate").endpoint
        setting = f"generate.served_model={served or 'null'}"
        found = endpoint_mistake(setting, served is not None, "execution.generate.endpoint.url", endpoint)
        mistakes += [mistake for mistake in (found, _judge_mistake("judge", self.labeller, self.execution)) if mistake is not None]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


# --------------------------------------------------------------------------------------------------------------- study


def _objective_of_a_study(name: str) -> str:
    return name if name == ROBUST else find_objective(name).name


class Contender(StrictModel):
    """One loss of a comparison, and the objectives it is trained under."""

    loss: Loss = Field(description="A registered loss and its parameters, e.g. {name: dpo, beta: 0.1}.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate for this loss; null = align.optimization.learning_rate. Losses differ in scale."
    )
    objectives: list[Annotated[str, AfterValidator(_objective_of_a_study)]] = Field(
        default=["erm", ROBUST],
        min_length=1,
        description="Objectives of its rows: `robust` (see there) or a registered one; auto is what the race of each seed chooses.",
    )

    @property
    def label(self) -> str:
        """``"dpo"``, or ``"dpo beta=0.5"`` where a parameter is not its default."""
        shown = self.loss.model_dump(exclude={"name"}, exclude_defaults=True)
        return " ".join([self.loss.name, *(f"{name}={value}" for name, value in shown.items())])


def _contenders(*given: dict[str, Any]) -> list[Contender]:
    return [Contender.model_validate(each) for each in given]


class StudyConfig(MethodConfig):
    """The paper's comparisons on the known mixture: a grid of realignments over seeds. Every key has a default."""

    example: ClassVar[str] = "infra/configs/study-quick.yaml"

    project: str = Field("study", pattern=NAME_PATTERN, description="Name of the MLflow experiment and of the run history.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0, 1, 2, 3, 4], min_length=1, description="Repetitions; a seed is added to testbed.seed and to every stage's own."
    )
    tables: list[TableName] = Field(default=list(TABLES), min_length=1, description="Comparisons wanted.")
    testbed: TestbedConfig = Field(default_factory=TestbedConfig, description="The known mixture; noise and golden_shift vary per table.")
    golden_responses: int = Field(1000, ge=1, le=100_000, description="Size of the golden reference apart from the mixture.")
    holdout_fraction: float = Field(0.25, ge=0.01, le=0.5, description="Share of prompts kept for judging.")
    pairwise: list[Contender] = Field(
        default_factory=lambda: _contenders(
            {"loss": "dpo", "objectives": ["erm", ROBUST, "dr_dpo"]},
            {"loss": "r_dpo"},
            {"loss": "exo"},
            {"loss": "simpo"},
            {"loss": "robust_dpo", "objectives": ["erm"]},
        ),
        description="Losses of the pairwise table.",
    )
    listwise: list[Contender] = Field(
        default_factory=lambda: _contenders({"loss": "dpo_pl"}, {"loss": "rrhf"}, {"loss": "lire"}),
        description="Losses of the listwise table.",
    )
    focus: list[str] = Field(
        default=["dpo", "lire"],
        min_length=1,
        description="Losses, of those above, of the ablation and lambda tables; the first is that of noise and shifted_golden.",
    )
    robust: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="Objective that `robust` (in tables: + dora) stands for.")
    ablation: list[Annotated[str, AfterValidator(_objective_of_a_study)]] = Field(
        default=["erm", "dro", "reweight", "dora", "dora_outer", "dora_tilted"], description="Objectives of the ablation table."
    )
    baselines: list[Literal["golden_only", "golden_only_epochs", "synthetic_only"]] | None = Field(
        None,
        description="Rows of the losses of focus trained on part of the records (dora_core/config/twins.py); null = all where "
        "testbed.one_source_per_record, else none.",
    )
    lambdas: list[Annotated[float, Field(gt=0)] | Literal["auto"]] = Field(
        default=[0.1, 0.3, 1.0, 3.0, 10.0, "auto"], description="λ of dora in the lambda table."
    )
    noise_levels: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.0, 0.2, 0.4, 0.6], description="Label noise of the noise table."
    )
    golden_shifts: list[Annotated[float, Field(ge=0, le=4)]] = Field(
        default=[0.0, 0.5, 1.0], description="Bias of the golden reference in the shifted_golden table."
    )
    generate: GenerateConfig = Field(
        default_factory=lambda: GenerateConfig(samples=4, max_new_tokens=96), description="Responses that are judged, on held-out prompts."
    )
    rounds: RoundsConfig = Field(default_factory=RoundsConfig, description="Rounds of the rounds table; `strategies` adds rows to it.")
    strategies: list[Literal["raft", "selfie"]] = Field(
        default=[], description="Other strategies of the rounds table, from robust's round 0."
    )
    rounds_generate: ListGenerateConfig = Field(
        default_factory=lambda: ListGenerateConfig(max_new_tokens=96), description="Samples that the rounds learn from."
    )
    judge: Judge = Field(
        default_factory=RewardModelJudge,
        description="The judge that labels them (gold: of the study's testbed). Policies are always compared by gold reward.",
    )
    bootstrap_samples: int = Field(2000, ge=100, le=100_000, description="Bootstrap resamples of the tables: seeds, then prompts.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the tables' intervals.")

    @property
    def contenders(self) -> dict[str, Contender]:
        return {contender.label: contender for contender in (*self.pairwise, *self.listwise)}

    @property
    def parts(self) -> list[TwinName]:
        """The baselines, in the order of ``TWINS``."""
        if self.baselines is None:
            return [name for name in TWINS if name != "erm"] if self.testbed.one_source_per_record else []
        return [name for name in TWINS if name in self.baselines]

    @model_validator(mode="after")
    def _check(self) -> Self:
        mistakes = []
        if self.baselines and not self.testbed.one_source_per_record:
            mistakes.append(
                "baselines: few records of this testbed are of one kind of source: set testbed.one_source_per_record=true, or baselines=[]"
            )
        labels = [contender.label for contender in (*self.pairwise, *self.listwise)]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            mistakes.append(f"pairwise and listwise name {', '.join(twice)} twice: give each loss other parameters, or keep one")
        for name in self.focus:
            if name not in labels:
                mistakes.append(f"focus: {name!r} is not a loss of pairwise or listwise; {did_you_mean(name, labels)}")
        if len(set(self.seeds)) < len(self.seeds):
            mistakes.append(f"seeds: {self.seeds} names one twice; each must be another mixture")
        if self.align.model_fields_set & {"loss", "objective"}:
            mistakes.append("align.loss and align.objective vary over the grid: use pairwise, listwise and robust")
        if not find_objective(self.robust.name).uses_factors:
            mistakes.append(f"robust.name: {self.robust.name} uses no calibration factors, so there would be nothing to compare")
        if "auto" in self.lambdas and self.robust.scope != "global":
            mistakes.append(f"lambdas: auto needs robust.scope global, got {self.robust.scope}")
        if self.rounds.strategy != "align":
            mistakes.append("rounds.strategy: the rounds table compares erm and robust by alignment; name others in strategies")
        if self.evaluate.twins:
            mistakes.append("evaluate.twins: the grid has its own rows of erm, and of part of the records (baselines); leave it out")
        if not self.sft.enabled:
            mistakes.append("sft.enabled: the study judges policies against the supervised start; leave it true")
        if self.testbed.unlabelled:
            mistakes.append("testbed.unlabelled: the grid's tables compare by source; leave it 0")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self
