"""Robust objectives: one registry; closed forms apart from the terms of their gradients. Start reading at ``robust.py``."""

from dora_core.objectives.base import OBJECTIVES, Objective, StepSums, Terms, find_objective, register_objective
from dora_core.objectives.robust import DRO, ERM, KLDPO, Auto, DoRA, DoRAOuter, DoRATilted, DrDPO, Reweight
from dora_core.objectives.settings import LambdaSchedule, ObjectiveConfig

__all__ = [
    "DRO",
    "ERM",
    "KLDPO",
    "OBJECTIVES",
    "Auto",
    "DoRA",
    "DoRAOuter",
    "DoRATilted",
    "DrDPO",
    "LambdaSchedule",
    "Objective",
    "ObjectiveConfig",
    "Reweight",
    "StepSums",
    "Terms",
    "find_objective",
    "register_objective",
]
