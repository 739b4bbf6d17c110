"""Preference losses: one registry, one signature, unreduced ℓ per record. Start reading at ``base.py``, then ``logistic.py``."""

from dora_core.losses.absolute import NCA, APODown, APOZero
from dora_core.losses.base import LOSSES, LossParams, PreferenceBatch, PreferenceLoss, parse_loss, register_loss, registered_losses
from dora_core.losses.binary import FixedPointKTO, FixedShiftBCO
from dora_core.losses.combined import MPO
from dora_core.losses.finite_margin import EXO, IPO, SPPO, Hinge
from dora_core.losses.label_noise import CDPO, DPOPRO, ROPO, RobustDPO
from dora_core.losses.latent_label import LCPO
from dora_core.losses.listwise import D2O, DPOPL, PRO, RRHF, LiRE
from dora_core.losses.logistic import DPO, RDPO, RPO, ChiPO, LnDPO, SimPO
from dora_core.losses.on_policy import WPO
from dora_core.losses.optimal_transport import AOT
from dora_core.losses.pairwise import MarginLoss, PairwiseLoss
from dora_core.losses.reference_free import ASFT, CPO, ORPO, SFT

__all__ = [
    "AOT",
    "ASFT",
    "CDPO",
    "CPO",
    "D2O",
    "DPO",
    "DPOPL",
    "DPOPRO",
    "EXO",
    "IPO",
    "LCPO",
    "LOSSES",
    "MPO",
    "NCA",
    "ORPO",
    "PRO",
    "RDPO",
    "ROPO",
    "RPO",
    "RRHF",
    "SFT",
    "SPPO",
    "WPO",
    "APODown",
    "APOZero",
    "ChiPO",
    "FixedPointKTO",
    "FixedShiftBCO",
    "Hinge",
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
