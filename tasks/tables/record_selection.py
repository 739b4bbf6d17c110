"""Training on part of the records: golden or synthetic ones (``dora_core/config/twins.py`` defines both), or without some prompts."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dora_core.errors import DataError
from dora_core.strict_model import StrictModel, is_empty

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class RecordSelection(StrictModel):
    """The training records with a golden labeller, or with another one. Where no labeller is named: those whose responses are all golden,
    or of which none is and all have a source.

    Attributes:
        golden_sources: patterns, see :func:`dora_core.data.records.is_golden_source`.
        labeller: carried column with the name of a label's annotator or judge, as in ``trust.labeller``; None: no labeller is named.
    """

    records: Literal["golden", "synthetic"]
    golden_sources: list[str]
    labeller: str | None = Field(None, exclude_if=is_empty)

    @property
    def columns(self) -> list[str]:
        """Columns of the records that :meth:`of` reads; records of an early release carry nothing."""
        return ["sources"] if self.labeller is None else ["sources", "extra"]

    def of(self, records: pa.Table) -> pa.Array:
        """Mask over records, of which :attr:`columns` are needed."""
        import pyarrow as pa

        from dora_core.data.records import carried_text, is_golden_source

        wanted, of_name = self.records == "golden", dict[str | None, bool]()

        def selects(name: str | None) -> bool:
            if name not in of_name:
                of_name[name] = name is not None and is_golden_source(name, self.golden_sources) == wanted
            return of_name[name]

        labellers = repeat(None) if self.labeller is None else (carried_text(e, self.labeller) for e in records["extra"].to_pylist())
        mask = [
            bool(sources) and all(map(selects, sources)) if labeller is None else selects(labeller)
            for sources, labeller in zip(records["sources"].to_pylist(), labellers, strict=False)
        ]
        return pa.array(mask, pa.bool_())

    def none_found(self, records: int) -> DataError:
        """The error for ``records`` training records of which none is selected."""
        return DataError(
            f"none of the {records} training records is {self.records}: a {self.records} record has "
            + (f"such a labeller in {self.labeller}, or without one " if self.labeller else "")
            + f"responses of {'golden' if self.records == 'golden' else 'other'} sources only "
            + f"({', '.join(self.golden_sources)} are golden)",
            hint=f"take {self.records}_only out of evaluate.twins, or set data.golden_sources to the trusted ones; records that mix "
            "golden and synthetic responses count as neither, unless a carried column names their labeller (trust.labeller)",
        )


class HeldOutPrompts(StrictModel):
    """Train prompts that are kept from a training: one fold of them, the cross-fitting fold of ``dora_core/data/records.py``."""

    folds: int = Field(ge=2)
    fold: int = Field(ge=0)

    def of(self, prompt_hash: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Mask over records from their hashes of the prompt: True where the prompt is held out."""
        from dora_core.data.records import fold_of

        held: NDArray[np.bool_] = fold_of(prompt_hash.to_numpy(), self.folds) == self.fold
        return held
