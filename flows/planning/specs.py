"""Specs of a realignment and its rounds, built stage by stage from a configuration.

Every stage has one method here, which gives it its inputs. Specs point at their inputs by digest, so a whole chain is known before
anything runs. ``flows/planning/plan.py`` compares it with the store, ``flows/planning/rounds.py`` and ``flows/planning/study_grid.py``
build longer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dora_core.config.alignment import AlignConfig
from dora_core.config.judging import Judge, RewardModelJudge
from dora_core.config.method import GenerateConfig, OptimizationConfig, SftConfig
from dora_core.config.twins import TWINS, TwinName
from dora_core.objectives import find_objective
from dora_core.objectives.settings import ObjectiveConfig
from flows.config.models import MethodConfig, RealignConfig, SelfTrainConfig
from flows.planning.registered import resolved
from infra.store.store import sha256_file, sha256_of
from tasks.runtime.spec import ModelSource, StageRef, StageSpec
from tasks.stages._drift_facts import Previous
from tasks.tables.record_selection import HeldOutPrompts, RecordSelection

if TYPE_CHECKING:
    from tasks.stages import align as align_stage
    from tasks.stages import trial

Configuration = TypeVar("Configuration", bound=MethodConfig)
Split = Literal["train", "eval"]

START_STREAM, CHAMPION_STREAM, TWIN_STREAM = 1 << 20, 1 << 21, 1 << 22
"""Added to the seed of an opponent's samples: with equal seeds they would share their random numbers with the policy's."""


@dataclass(frozen=True)
class AlignmentInputs:
    """Stages that an alignment of the given records reads; None where the configuration has none."""

    start: StageRef | None
    reference: StageRef
    calibration: StageRef | None
    race: StageRef | None


class Chain:
    """Specs of one run: label → spec, in running order, without duplicates.

    Args:
        config: pinned, see :func:`pinned`.
        fingerprints: of the input files.

    Attributes:
        records: input of the next stages: the given records, a round's mixture, or those of a run that continues from a champion.
        model: the base policy, as stages read it.
        round: the self-training round that stages belong to; in labels from round 1 on. None outside self-training.
        rounds: label → round.
    """

    def __init__(self, config: RealignConfig, fingerprints: dict[str, str]):
        from tasks.stages import ingest

        self.config, self.specs = config, dict[str, StageSpec]()
        self.model = config.policy.model
        self._continues = False
        self._base: StageRef | None = None  # of a run that continues from a champion
        self.round: int | None = 0 if isinstance(config, SelfTrainConfig) else None
        self.rounds: dict[str, int | None] = {}
        self._run, self._golden = config.execution.of, config.data.golden_sources
        self._refs: set[StageRef] = set()
        self._trust: dict[StageRef, StageRef] = {}
        self.given = self.records = self.add(
            "ingest", ingest.Spec(data=config.data, fingerprints=fingerprints, execution=self._run("ingest"))
        )

    def add(self, label: str, spec: StageSpec) -> StageRef:
        """Append a stage, after the on-demand stages that it reads: ``align (erm twin)`` after ``training_data (erm twin)``."""
        ref = spec.ref()
        if ref not in self._refs:
            self._refs.add(ref)
            for data in spec.preparation().values():
                self.add(label.replace(spec.stage, data.stage, 1) if spec.stage in label else f"{data.stage} ({label})", data)
            label = f"r{self.round} {label}" if self.round else label
            self.specs[label], self.rounds[label] = spec, self.round
        return ref

    # ------------------------------------------------------------------------------------------------------ realignment

    def drift(self, previous: Previous | None) -> StageRef:
        """Add ``drift``: how far the data has moved since the last run."""
        from tasks.stages import drift

        config = self.config
        spec = drift.Spec(
            records=self.records,
            classifier=config.classifier,
            calibration=config.calibration,
            golden_sources=self._golden,
            drift=config.drift,
            previous=previous,
            execution=self._run("drift"),
        )
        return self.add("drift", spec)

    def calibrate(self, drift: StageRef | None = None) -> StageRef:
        """Add classify → calibrate: the trained factors h.

        Args:
            drift: decides whether an earlier classifier is kept; None fits anew.
        """
        from tasks.stages import calibrate, classify

        classifier = self.add(
            "classify",
            classify.Spec(
                records=self.records,
                classifier=self.config.classifier,
                golden_sources=self._golden,
                drift=drift,
                execution=self._run("classify"),
            ),
        )
        return self.add(
            "calibrate",
            calibrate.Spec(
                records=self.records,
                classifier=classifier,
                calibration=self.config.calibration,
                golden_sources=self._golden,
                execution=self._run("calibrate"),
            ),
        )

    def value(self, calibration: StageRef | None) -> StageRef:
        """Add trust in the labels of the current records, which their alignments use by ``trust.apply``, and exchange rates."""
        from tasks.stages import value

        spec = value.Spec(
            records=self.records,
            calibration=calibration,
            trust=self.config.trust,
            exchange=self.config.exchange,
            golden_sources=self._golden,
            aggregate=self.config.calibration.aggregate if calibration else "mean",
            shares=self.config.races,
            **self._proxy_policy(),
            execution=self._run("value"),
        )
        self._trust[self.records] = ref = self.add("value", spec)
        return ref

    def race(self, calibration: StageRef, value: StageRef) -> StageRef:
        """Add the race, which chooses the objective and the weights of records; labels are softened only for a loss that can read it."""
        from tasks.stages import race

        align, trust = self.config.align, self.config.trust
        softens = align.loss.reads_label_probability and align.label_probability == "use"
        spec = race.Spec(
            records=self.records,
            calibration=calibration,
            value=value,
            race=self.config.race.evolve(finalists=4, minutes=None),  # of the trials
            trust=trust if softens else trust.evolve(method="off", apply="off"),
            exchange=self.config.exchange,
            golden_sources=self._golden,
            aggregate=self.config.calibration.aggregate,
            **self._proxy_policy(),
            execution=self._run("race"),
        )
        return self.add("race", spec)

    def choose(self, calibration: StageRef | None) -> StageRef | None:
        """Add trust in labels, exchange rates and the race of the current records, as far as the configuration wants them; returns the
        race."""
        value = self.value(calibration) if self.config.needs_valuation else None
        return self.race(calibration, value) if self.config.races and calibration is not None and value is not None else None

    def alignment_inputs(self, calibration: StageRef | None, champion: StageRef | None = None) -> AlignmentInputs:
        """Add everything that the alignment of the given records reads, besides the factors.

        Args:
            champion: the policy to continue from; None: the configured start.
        """
        race = self.choose(calibration)
        start = self.start() if champion is None else champion
        return self.finals(AlignmentInputs(start, self.reference(start), calibration, race))

    def finals(self, inputs: AlignmentInputs, align: AlignConfig | None = None) -> AlignmentInputs:
        """Add short trainings of the race's finalists and the choice between them, with ``race.by: training``; returns the inputs with
        that choice in place of the race's."""
        from dora_core.selection.race import FINALISTS
        from tasks.stages import finals, tune

        settings = self.config.race
        if inputs.race is None or settings.by != "training":
            return inputs
        names = FINALISTS[: settings.finalists]
        trials = {name: self.trial(inputs, align, recipe=name) for name in names}
        search = tune.search_spec(trials, {name: {"finalist": name} for name in names}, self.config.tune, settings.minutes)
        for name, spec in trials.items():
            for data in spec.preparation().values():
                self.add(f"{data.stage} ({name})", data)
        chosen = finals.Spec(race=inputs.race, tune=self.add("tune", search), confidence=self.config.tune.confidence)
        return replace(inputs, race=self.add("finals", chosen))

    def replay(self, earlier: StageRef, base: StageRef | None) -> StageRef:
        """Add the training records of a run that continues from a champion: those that are new since ``earlier``, and some of the others.
        They are the input of the stages that follow.

        Args:
            base: of the champion's lineage; None: the model itself.
        """
        from tasks.stages import replay

        spec = replay.Spec(
            records=self.given,
            earlier=earlier,
            replay=self.config.policy.replay,
            golden_sources=self._golden,
            execution=self._run("replay"),
        )
        self._continues, self._base = True, base
        self.records = self.add("replay", spec)
        return self.records

    def start(self) -> StageRef | None:
        """Add the supervised start; None where alignment starts from the model as it is."""
        return self._fine_tune(None, self.config.sft) if self.config.sft.enabled else None

    def raft(self, policy: StageRef, optimization: OptimizationConfig) -> StageRef:
        """Add ``policy`` fine-tuned on each record's best response."""
        return self._fine_tune(policy, SftConfig(data="best", optimization=optimization))

    def _fine_tune(self, policy: StageRef | None, settings: SftConfig, records: StageRef | None = None) -> StageRef:
        from tasks.stages import sft

        spec = sft.Spec(
            records=records or self.records,
            start=policy,
            model=self.model,
            text=self.config.text,
            sft=settings,
            golden_sources=self._golden,
            execution=self._run("sft"),
        )
        return self.add("sft", spec)

    def reference(self, start: StageRef | None, label: str = "reference") -> StageRef:
        """Add the log-probabilities of every response under the start."""
        from tasks.stages import reference

        return self.add(label, reference.Spec(**self._policy(start), execution=self._run("reference")))

    def align(
        self,
        start: StageRef | None,
        reference: StageRef,
        calibration: StageRef | None,
        label: str = "align",
        align: AlignConfig | None = None,
        race: StageRef | None = None,
    ) -> StageRef:
        """Add the alignment; returns the policy.

        Args:
            race: gives objective, weights and label probabilities, for ``objective: auto``.
        """
        return self.add(label, self.alignment(AlignmentInputs(start, reference, calibration, race), align))

    def alignment(self, inputs: AlignmentInputs, align: AlignConfig | None = None) -> align_stage.Spec:
        """Return the spec of an alignment (None: the configured one), with the trust in labels that it uses."""
        align = align or self.config.align
        start, reference, calibration, race = inputs.start, inputs.reference, inputs.calibration, inputs.race
        if race is not None:
            chosen = align.evolve(objective=ObjectiveConfig(name=align.objective.name))  # its λ is the race's
            return self._alignment(start, reference, race, chosen).evolve(race=race, trust=race, aggregate="mean")
        use = self.config.trust.apply
        # A weight is a factor of h, which an objective without h does not read.
        trusts = use == "soft_label" or (use == "weight" and calibration is not None)
        trust: dict[str, Any] = {"trust": self._trust.get(self.records), "trust_use": use} if trusts else {}
        return self._alignment(start, reference, calibration, align).evolve(**trust)

    def trial(self, inputs: AlignmentInputs, align: AlignConfig | None = None, recipe: str | None = None) -> trial.Spec:
        """Return the spec of a trial of an alignment (None: the configured one); a search adds it, not the plan.

        Args:
            recipe: finalist of the race; None: its choice.
        """
        from tasks.stages import trial

        align, tune = align or self.config.align, self.config.tune
        if not find_objective(align.objective.name).uses_lambda:  # trials that differ in an idle λ are one
            align = align.evolve(objective=ObjectiveConfig(name=align.objective.name, scope=align.objective.scope))
        spec = self.alignment(inputs, align)
        return trial.Spec(
            **{name: getattr(spec, name) for name in type(spec).model_fields if name not in ("held_out", "recipe")},
            recipe=recipe,
            held_out=HeldOutPrompts(folds=tune.folds, fold=tune.seed % tune.folds),
            tune=tune,
            golden_sources=self._golden,
            labeller=self.config.trust.labeller,
        )

    def twin(self, name: TwinName, start: StageRef | None, reference: StageRef, align: AlignConfig | None = None) -> StageRef:
        """Add a twin of the alignment ``align`` (None: the configured one): see ``dora_core/config/twins.py``."""
        return self.add(f"align ({name} twin)", self._twin(name, start, reference, align))

    def twin_data(self, names: list[TwinName], start: StageRef | None, reference: StageRef) -> None:
        """Add the training data of twins of part of the records, before anything is aligned: if there is no such record, the run fails
        here, not after the alignment."""
        for name in (name for name in names if TWINS[name].records != "all"):
            for spec in self._twin(name, start, reference, None).preparation().values():
                self.add(f"{spec.stage} ({name} twin)", spec)

    def _twin(self, name: TwinName, start: StageRef | None, reference: StageRef, align: AlignConfig | None) -> StageSpec:
        twin = TWINS[name]
        plain = (align or self.config.align).evolve(objective=ObjectiveConfig(name="erm"), drop_hardest=0.0)
        spec = self._alignment(start, reference, None, plain)
        if twin.records == "all":
            return spec
        selection = RecordSelection(records=twin.records, golden_sources=self._golden, labeller=self.config.trust.labeller)
        return spec.evolve(selection=selection, equal_steps=twin.equal == "steps")

    def _alignment(self, start: StageRef | None, reference: StageRef, calibration: StageRef | None, align: AlignConfig) -> align_stage.Spec:
        from tasks.stages import align as stage

        return stage.Spec(
            **self._policy(start),
            reference=reference,
            calibration=calibration,
            align=align,
            aggregate=self.config.calibration.aggregate if calibration else "mean",
            plugins=stage.plugin_digests(align),
            execution=self._run("align"),
        )

    def benchmark(self, policy: StageRef | None, of: str = "") -> StageRef:
        """Add the benchmarks of a policy (None: of the model as it is)."""
        from dora_core.evaluation.benchmarks import task_files
        from tasks.stages import benchmarks

        config = self.config.benchmarks
        assert config is not None, "called where benchmarks are configured"
        spec = benchmarks.Spec(
            policy=policy,
            model=self.model,
            benchmarks=config,
            files={str(path): sha256_file(path) for task in config.files for path in task_files(task)},
            execution=self._run("benchmarks"),
        )
        return self.add(f"benchmarks{of}", spec)

    def evaluate(
        self,
        start: StageRef | None,
        reference: StageRef,
        policy: StageRef,
        twins: Mapping[TwinName, StageRef] | None = None,
        comparison: StageRef | None = None,
        label: str = "evaluate",
    ) -> StageRef:
        """Add the evaluation on held-out preferences, with the gate."""
        from tasks.stages import evaluate

        asked = {"start": self.benchmark(start, " start"), "policy": self.benchmark(policy)} if self.config.benchmarks else {}
        return self.add(
            label,
            evaluate.Spec(
                **self._policy(start),
                reference=reference,
                policy=policy,
                twins=twins or {},
                comparison=comparison,
                benchmarks=asked,
                evaluate=self.config.evaluate,
                gate=self.config.gate,
                golden_sources=self._golden,
                execution=self._run("evaluate"),
            ),
        )

    def promote(self, evaluation: StageRef, policy: StageRef) -> StageRef:
        """Add the registration and, by the gate's verdict, the promotion."""
        from tasks.stages import promote

        config = self.config
        return self.add(
            "promote",
            promote.Spec(
                evaluation=evaluation,
                policy=policy,
                model_name=config.model_name,
                mode=config.promotion.mode,
                config=sha256_of(config.model_dump(mode="json", by_alias=True)),
                compares=config.compare is not None and config.compare.champion,
            ),
        )

    # --------------------------------------------------------------------------------------------- samples and their judge

    def generate(self, label: str, policy: StageRef | None, split: Split, generate: GenerateConfig) -> StageRef:
        """Add samples of a policy (None: of the model as it is), or of the model that an endpoint serves."""
        from tasks.stages import generate as stage

        config, execution = self.config, self._run("generate")
        served = generate.served_model is not None
        spec = stage.Spec(
            records=self.given,
            policy=None if served else policy,
            model=self.model,
            text=config.text,
            generate=generate,
            split=split,
            execution=execution if served else execution.evolve(endpoint=None),
        )
        return self.add(label, spec)

    def judge(
        self,
        label: str,
        judge: Judge,
        samples: StageRef | None,
        model: StageRef | None = None,
        reference: ModelSource | None = None,
    ) -> StageRef:
        """Add scores of samples; without samples, of the held-out responses of the given records."""
        from dora_core.models.pinning import pin_text
        from tasks.stages import judge as stage

        named = judge.model if isinstance(judge, RewardModelJudge) and model is None else None
        spec = stage.Spec(
            records=self.given,
            samples=samples,
            judge=judge,
            model=model,
            reference=reference,
            text=self.config.text if named is None else pin_text(self.config.text, named),
            execution=self._run("judge"),
        )
        return self.add(label, spec)

    def reward_model(self, judge: Judge, start: StageRef | None) -> StageRef | None:
        """Add the reward model that ``judge`` needs, trained on the given preferences; None where it needs none."""
        from tasks.stages import reward

        if not isinstance(judge, RewardModelJudge) or not judge.model.is_tiny:
            return None
        spec = reward.Spec(
            records=self.given,
            start=start,
            model=self.model if start is None else judge.model,
            text=self.config.text,
            training=judge.training,
            golden_sources=self._golden,
            execution=self._run("reward"),
        )
        return self.add("reward", spec)

    def compare(
        self, policy: StageRef, start: StageRef | None, champions: list[StageRef], twins: Mapping[TwinName, StageRef] | None = None
    ) -> StageRef | None:
        """Add the comparison of the policy's held-out samples with those of the start, the champion and the twins, and with the chosen
        responses; None if it is off.

        Args:
            champions: the registry's champion and the one before: a policy that is champion itself is compared with its predecessor.
        """
        from tasks.stages import compare

        config = self.config.compare
        if config is None:
            return None
        model = self.reward_model(config.judge, start)
        champion = next((ref for ref in champions if ref != policy), None) if config.champion else None

        def judged(name: str, of: StageRef | None, stream: int) -> tuple[StageRef, StageRef]:
            drawn = config.generate.evolve(seed=config.generate.seed + stream)
            samples = self.generate(f"generate{name}", of, "eval", drawn)
            return samples, self.judge(f"judge{name}", config.judge, samples, model)

        samples, scores = judged("" if self.round is None else " held-out", policy, 0)
        start_samples, start_scores = judged(" start", start, START_STREAM)
        champion_samples, champion_scores = judged(" champion", champion, CHAMPION_STREAM) if champion else (None, None)
        of_twins = {name: judged(f" {name} twin", ref, TWIN_STREAM * (1 + list(TWINS).index(name))) for name, ref in (twins or {}).items()}
        spec = compare.Spec(
            records=self.given,
            samples=samples,
            scores=scores,
            start_samples=start_samples,
            start_scores=start_scores,
            champion_samples=champion_samples,
            champion_scores=champion_scores,
            twin_samples={name: samples for name, (samples, _) in of_twins.items()},
            twin_scores={name: scores for name, (_, scores) in of_twins.items()},
            chosen_scores=self.judge("judge chosen", config.judge, None, model),
            evaluate=self.config.evaluate.evolve(twins=[], groups=[]),  # nothing here depends on them
            golden_sources=self._golden,
            execution=self._run("compare"),
        )
        return self.add("compare", spec)

    def guard(self, label: str, **evidence: StageRef | None) -> StageRef:
        """Add the guard rails of the current round; ``evidence``: the stages they read, by the names of ``tasks/stages/guard.py``."""
        from tasks.stages import guard

        assert isinstance(self.config, SelfTrainConfig) and self.round is not None, "guard rails need self-training rounds"
        return self.add(label, guard.Spec(round=self.round, guard=self.config.rounds.guard, **evidence, execution=self._run("guard")))

    def _proxy_policy(self) -> dict[str, Any]:
        """The policy whose features the proxy reads, in every round that of the first start; empty for features of the texts alone."""
        config = self.config
        if config.exchange.features == "text":
            return {}
        start = self._base
        if not self._continues and config.sft.enabled:
            start = self._fine_tune(None, config.sft, self.given)
        return {"start": start, "model": self.model, "text": config.text}

    def _policy(self, start: StageRef | None) -> dict[str, Any]:
        """Return the inputs of every stage that works with the policy."""
        return {"records": self.records, "start": start, "model": self.model, "text": self.config.text}


def pinned(config: Configuration) -> Configuration:
    """Return ``config`` with the weights that its models name now, and the version of their tokens (``dora_core/models/pinning.py``).

    Raises:
        ModelError: a model is neither a folder nor a known id.
    """
    from dora_core.models.pinning import pin, pin_text

    config = resolved(config)

    def pinned_judge(judge: Judge) -> Judge:
        return judge.evolve(model=pin(judge.model)) if isinstance(judge, RewardModelJudge) else judge

    policy = pin(config.policy)
    changes: dict[str, Any] = {
        "policy": policy,
        "text": pin_text(config.text, policy),
        "classifier": config.classifier.evolve(encoder=pin(config.classifier.encoder)),
    }
    if isinstance(config, RealignConfig) and config.compare is not None:
        changes["compare"] = config.compare.evolve(judge=pinned_judge(config.compare.judge))
    if isinstance(config, SelfTrainConfig):
        changes["judge"] = pinned_judge(config.judge)
    return config.evolve(**changes)
