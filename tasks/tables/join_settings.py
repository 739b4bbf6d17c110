"""Settings of the join of alignment (``training_records.py``) that specs name."""

from __future__ import annotations

from typing import Literal

Aggregate = Literal["mean", "min", "chosen", "product"]
"""How a record's h follows from its responses' (``dora_core.calibration.aggregate``)."""

TrustUse = Literal["soft_label", "weight"]
"""What the estimated probability of a record's label becomes: its label probability, or a factor of its h."""
