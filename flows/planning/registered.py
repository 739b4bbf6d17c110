"""Registered models in place of folders and ids: ``policy.source: models:/demo@champion`` is the version's folder on this machine."""

from __future__ import annotations

from typing import TypeVar

from dora_core.config.judging import Judge, RewardModelJudge
from dora_core.config.method import ModelConfig
from flows.config.models import MethodConfig, RealignConfig, SelfTrainConfig

Configuration = TypeVar("Configuration", bound=MethodConfig)


def resolved_model(model: ModelConfig) -> ModelConfig:
    """Return a model with the folder that its registered name means now; any other name as it is.

    Raises:
        RegistryError, ConfigError, ServiceError: see ``infra/tracking/registered_models.py``.
    """
    from infra.settings import Settings, apply_environment
    from infra.tracking.registered_models import files, find, is_registered_name

    if not is_registered_name(model.source):
        return model
    uri = apply_environment(Settings()).mlflow_uri
    return model.evolve(source=str(files(uri, find(uri, model.source))))


def resolved(config: Configuration) -> Configuration:
    """Return a configuration in which no model has a registered name."""

    def of_judge(judge: Judge) -> Judge:
        return judge.evolve(model=resolved_model(judge.model)) if isinstance(judge, RewardModelJudge) else judge

    changes: dict[str, object] = {}
    if (policy := resolved_model(config.policy)) != config.policy:
        changes["policy"] = policy
    if (encoder := resolved_model(config.classifier.encoder)) != config.classifier.encoder:
        changes["classifier"] = config.classifier.evolve(encoder=encoder)
    if (
        isinstance(config, RealignConfig)
        and config.compare is not None
        and (judge := of_judge(config.compare.judge)) != config.compare.judge
    ):
        changes["compare"] = config.compare.evolve(judge=judge)
    if isinstance(config, SelfTrainConfig) and (judge := of_judge(config.judge)) != config.judge:
        changes["judge"] = judge
    return config.evolve(**changes) if changes else config
