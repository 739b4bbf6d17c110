"""Self-training rounds as specs: the stages after a realignment in which the policy learns from its own samples.

    policy k−1 → generate → guard → judge → mix → classify → calibrate (→ value → race) → guard → reference → align → policy k
                                                    policy k → generate (held-out) → judge → compare → evaluate → guard

Round 0 is the realignment of the given data. Every round is trained from the last policy with that policy as reference, and judged
against the start of round 0 on the same held-out prompts, so that rounds compare. Under ``objective: auto`` every round races again, on the
golden preferences in its own mixture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dora_core.config.judging import ImplicitJudge
from dora_core.config.method import GenerateConfig
from flows.config.models import SelfTrainConfig
from flows.planning.specs import AlignmentInputs, Chain
from tasks.runtime.spec import StageRef


@dataclass
class Samples:
    """Samples and scores of the rounds so far, one of each per round; ``policies`` wrote them (None: an endpoint's model)."""

    samples: list[StageRef] = field(default_factory=list)
    scores: list[StageRef] = field(default_factory=list)
    policies: list[StageRef | None] = field(default_factory=list)

    def last(self, count: int | None) -> dict[str, list[Any]]:
        """Return the fields of ``tasks/stages/mix.py`` for the last ``count`` rounds; None: all rounds."""
        return {name: refs[-count:] if count else refs for name, refs in vars(self).items()}


def add_rounds(
    chain: Chain, start: StageRef | None, reference: StageRef, policy: StageRef, champions: list[StageRef]
) -> tuple[StageRef, StageRef]:
    """Append the evaluation of round 0 and all rounds; returns the last evaluation and the last policy.

    Args:
        start, reference, policy: of the realignment, which becomes round 0.
        champions: see :meth:`flows.planning.specs.Chain.compare`.
    """
    config = chain.config
    assert isinstance(config, SelfTrainConfig)

    def evaluated() -> StageRef:
        chain.records = chain.given
        return chain.evaluate(start, reference, policy, comparison=chain.compare(policy, start, champions))

    evaluation = evaluated()
    done = Samples()
    for number in range(1, config.rounds.rounds + 1):
        chain.round = number
        sample(chain, start, policy, done)
        policy = learn(chain, policy, done)
        before, evaluation = evaluation, evaluated()
        chain.guard("guard policy", evaluation=evaluation, before=before)
    return evaluation, policy


def sample(chain: Chain, start: StageRef | None, policy: StageRef, done: Samples) -> None:
    """Add the stages that sample the train prompts, check the samples by the guard rails, and score them."""
    config, number = chain.config, chain.round
    assert isinstance(config, SelfTrainConfig) and number
    drawn: GenerateConfig = config.generate.evolve(seed=config.generate.seed + number, prompts=config.rounds.prompts)
    samples = chain.generate("generate", policy, "train", drawn)
    chain.guard("guard samples", samples=samples, first_samples=done.samples[0] if done.samples else None)
    judge = config.labeller
    if isinstance(judge, ImplicitJudge):
        scores = chain.judge("judge", judge, samples, policy, start or chain.model)
    else:
        scores = chain.judge("judge", judge, samples, chain.reward_model(judge, start))
    done.samples.append(samples)
    done.scores.append(scores)
    done.policies.append(None if config.generate.served_model else policy)


def learn(chain: Chain, policy: StageRef, done: Samples) -> StageRef:
    """Add the stages that train the next policy on the round's mixture; returns the policy."""
    from tasks.stages import mix

    config, number = chain.config, chain.round
    assert isinstance(config, SelfTrainConfig) and number
    rounds = config.rounds
    refs = done.last(None if rounds.mix.earlier_rounds else 1)
    golden, execution = config.data.golden_sources, config.execution.of("mix")
    mixture = mix.Spec(records=chain.given, **refs, round=number, mix=rounds.mix, golden_sources=golden, execution=execution)
    chain.records = chain.add("mix", mixture)
    optimization = rounds.optimization or config.align.optimization
    if rounds.strategy == "raft":
        chain.guard("guard mixture", mix=chain.records)
        return chain.raft(policy, optimization)
    calibration = chain.calibrate() if config.needs_calibration else None
    # Labels of the samples are of another source than the given ones, so each round chooses anew.
    value = chain.value(calibration) if config.trust.apply != "off" or config.races else None
    race = chain.race(calibration, value) if config.races and calibration is not None and value is not None else None
    chain.guard("guard mixture", mix=chain.records, calibration=calibration)
    align = config.align.evolve(optimization=optimization)
    inputs = chain.finals(AlignmentInputs(policy, chain.reference(policy), calibration, race), align)
    return chain.align(policy, inputs.reference, calibration, align=align, race=inputs.race)
