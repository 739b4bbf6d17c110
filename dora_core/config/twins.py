"""Twins: the policies that an aligned one has to beat, trained from the same start with the same loss, seeds and settings.

Each learns under the objective ``erm``, all records at equal weight, so that what distinguishes it are its records and its number of
steps. **A new twin** is a name in :data:`TwinName` and an entry of :data:`TWINS`.

A record whose labeller is named (``trust.labeller``) is *golden* if that is a golden source, else *synthetic*. Without a named labeller
it is golden if all its responses are of golden sources: its label then comes from people too, since one labeller rates all responses of
a record. It is synthetic if all its responses are of other sources. A record that mixes golden and synthetic responses is
neither, for its label has no known author, and so is one with a response of unknown source; twins of part of the records leave both out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TwinName = Literal["erm", "golden_only", "golden_only_epochs", "synthetic_only"]
RecordSet = Literal["all", "golden", "synthetic"]


@dataclass(frozen=True)
class Twin:
    """A twin's descriptor.

    Attributes:
        title: in sentences: "better than …".
        records: the training records.
        equal: ``steps``: as many optimisation steps as training on all records takes, passing over its own more often; ``epochs``: as many
            passes over its own records, hence fewer steps.
    """

    title: str
    records: RecordSet
    equal: Literal["steps", "epochs"]


TWINS: Mapping[TwinName, Twin] = {
    "erm": Twin("plain training (erm)", "all", "steps"),
    "golden_only": Twin("golden records alone", "golden", "steps"),
    "golden_only_epochs": Twin("golden records alone, equal epochs", "golden", "epochs"),
    "synthetic_only": Twin("synthetic records alone", "synthetic", "steps"),
}
"""By name, in the order in which they are trained and shown."""
