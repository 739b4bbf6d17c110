"""Preference losses: one registry, one signature, unreduced ℓ per record. Start reading at ``base.py``."""

from dora_core.losses.base import LOSSES, PreferenceBatch, PreferenceLoss, parse_loss, register_loss
from dora_core.losses.listwise import DPOPL, LiRE
from dora_core.losses.pairwise import DPO

__all__ = ["DPO", "DPOPL", "LOSSES", "LiRE", "PreferenceBatch", "PreferenceLoss", "parse_loss", "register_loss"]
