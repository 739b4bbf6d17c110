"""Names of flow runs, from their configuration: they begin with the project, then name data, loss and objective."""

from __future__ import annotations

from pathlib import PurePosixPath

from dora_core.objectives import find_objective
from dora_core.objectives.settings import ObjectiveConfig
from flows.config.models import RealignConfig, SelfTrainConfig


def name_of_realignment(config: RealignConfig) -> str:
    """``"demo · mixture.parquet · dpo · dora λ=1"``: project, data, loss, objective."""
    objective, strength = config.align.objective, strength_of(config.align.objective)
    robust = f"{objective.name}{f' λ={strength}' if strength else ''}"
    return f"{config.project} · {data_of(config)} · {config.align.loss.name} · {robust}"


def name_of_calibration(config: RealignConfig) -> str:
    """``"demo · mixture.parquet · calibrate · paper"``: project, data and form of h."""
    return f"{config.project} · {data_of(config)} · calibrate · {config.calibration.form}"


def name_of_rounds(config: SelfTrainConfig) -> str:
    """``"demo · mixture.parquet · dpo · dora λ=auto · 3 rounds"``; the strategy where it is another."""
    rounds = config.rounds
    parts = [name_of_realignment(config), *([rounds.strategy] if rounds.strategy != "align" else [])]
    return " · ".join([*parts, f"{rounds.rounds} round{'s' if rounds.rounds > 1 else ''}"])


def data_of(config: RealignConfig) -> str:
    """``"mixture.parquet"``, or ``"human.jsonl + 2 more"``."""
    first, *more = (PurePosixPath(path).name for source in config.data.train for path in source.paths)
    return f"{first} + {len(more)} more" if more else first


def strength_of(objective: ObjectiveConfig) -> str:
    """Return λ as text: ``"1"``, ``"auto"``, ``"3→0.3"`` for a schedule, empty where the objective has none."""
    if not find_objective(objective.name).uses_lambda:
        return ""
    lam = objective.lam
    return lam if isinstance(lam, str) else f"{lam:g}" if isinstance(lam, float) else f"{lam.start:g}→{lam.end:g}"
