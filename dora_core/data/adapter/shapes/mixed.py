"""Files with both forms: rows that hold a list, rows that hold a pair, and rows that hold both.

A row with both keeps everything: without rewards, the chosen response gets 1, the rejected one 0, and the rest is not measured; with
rewards, they must agree with the pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.canonical import Adapted, CanonicalRow
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.shapes.list import ListShape
from dora_core.data.adapter.shapes.pair import PairShape
from dora_core.data.problems import Reason, problem


class PairOrListShape:
    """Decides row by row between the shapes pair and list."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.notes = notes
        self._pair, self._list = PairShape(adapter, columns, notes), ListShape(adapter, columns, notes)

    def __call__(self, row: dict[str, Any]) -> Adapted:
        has_list = _given(self._list.responses, row)
        has_pair = _given(self._pair.chosen, row) or _given(self._pair.rejected, row)
        if not has_pair:
            return self._list(row)
        if not has_list:
            return self._pair(row)
        listed, paired = self._list(row), self._pair(row)
        if isinstance(listed, CanonicalRow) and isinstance(paired, CanonicalRow):
            return self._both(listed, paired)
        return [*(listed if isinstance(listed, list) else []), *(paired if isinstance(paired, list) else [])]

    def _both(self, listed: CanonicalRow, paired: CanonicalRow) -> Adapted:
        fields, pair = listed.fields, paired.fields
        place, texts = self._pair.chosen.text, fields["responses"]
        if fields["prompt"] != pair["prompt"]:
            return [problem(place, Reason.MIXED_FORMS, f"has another prompt than {self._list.responses.text}; set `shape: pair` or `list`")]
        if pair["chosen"] not in texts or pair["rejected"] not in texts or pair["chosen"] == pair["rejected"]:
            detail = f"chosen and rejected are not two of {self._list.responses.text}; set `shape: pair` or `shape: list`"
            return [problem(place, Reason.MIXED_FORMS, detail)]
        best, worst = texts.index(pair["chosen"]), texts.index(pair["rejected"])
        rewards, ranks = fields.get("rewards"), fields.get("ranks")
        if rewards is None and ranks is None:
            self.notes["lists whose preference is their pair"] += 1
            rewards = [1.0 if i == best else 0.0 if i == worst else None for i in range(len(texts))]
            return CanonicalRow("listwise", {**fields, "rewards": rewards})
        numbers = rewards if rewards is not None else [None if rank is None else -rank for rank in ranks or []]
        if numbers[best] is None or numbers[worst] is None or not numbers[best] > numbers[worst]:
            detail = f"the numbers of {self._list.responses.text} do not prefer the chosen response; set `shape: pair` or `shape: list`"
            return [problem(place, Reason.SCORE_CONTRADICTS_LABEL, detail)]
        return listed


def _given(path: CompiledPath, row: dict[str, Any]) -> bool:
    value = path.get(row)
    return value is not None and type(value) is not Missing


SHAPE = RowShape(
    "mixed",
    by_row=PairOrListShape,
    fields=("chosen", "rejected", "chosen_source", "rejected_source", "responses", "rewards", "ranks", "sources"),
)
