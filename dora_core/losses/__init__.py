"""Preference losses: one registry, one signature, unreduced ℓ per record. Start reading at ``base.py``, then ``logistic.py``."""

from dora_core.losses.base import LOSSES, LossParams, PreferenceBatch, PreferenceLoss, parse_loss, register_loss, registered_losses
from dora_core.losses.binary import FixedPointKTO, FixedShiftBCO
from dora_core.losses.finite_margin import EXO, IPO
from dora_core.losses.label_noise import CDPO, RobustDPO
from dora_core.losses.listwise import DPOPL, PRO, RRHF, LiRE
from dora_core.losses.logistic import DPO, RDPO, RPO, LnDPO, SimPO
from dora_core.losses.pairwise import MarginLoss, PairwiseLoss

__all__ = [
    "CDPO",
    "DPO",
    "DPOPL",
    "EXO",
    "IPO",
    "LOSSES",
    "PRO",
    "RDPO",
    "RPO",
    "RRHF",
    "FixedPointKTO",
    "FixedShiftBCO",
    "LiRE",
    "LnDPO",
    "LossParams",
    "MarginLoss",
    "PairwiseLoss",
    "PreferenceBatch",
    "PreferenceLoss",
    "RobustDPO",
    "SimPO",
    "parse_loss",
    "register_loss",
    "registered_losses",
]
