"""Training on part of the records: golden or synthetic ones (``dora_core/config/twins.py`` defines both), or without some prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dora_core.errors import DataError
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class RecordSelection(StrictModel):
    """The training records whose responses are all golden, or of which none is and all have a source.

    Attributes:
        golden_sources: patterns, see :func:`dora_core.data.records.is_golden_source`.
    """

    records: Literal["golden", "synthetic"]
    golden_sources: list[str]

    def of(self, sources: pa.ChunkedArray) -> pa.Array:
        """Mask over records from their lists of sources."""
        import pyarrow as pa

        from dora_core.data.records import is_golden_source

        wanted, names = self.records == "golden", dict[str | None, bool | None]()
        for name in {name for of_record in sources.to_pylist() for name in of_record}:
            names[name] = None if name is None else is_golden_source(name, self.golden_sources) == wanted
        return pa.array([bool(of_record) and all(names[name] for name in of_record) for of_record in sources.to_pylist()], pa.bool_())

    def none_found(self, records: int) -> DataError:
        """The error for ``records`` training records of which none is selected."""
        return DataError(
            f"none of the {records} training records is {self.records}: a {self.records} record has responses of "
            f"{'golden' if self.records == 'golden' else 'other'} sources only ({', '.join(self.golden_sources)} are golden)",
            hint=f"take {self.records}_only out of evaluate.twins, or set data.golden_sources to the trusted ones; records that mix "
            "golden and synthetic responses count as neither",
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
