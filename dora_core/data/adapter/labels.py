"""Labels: from the value in a row to rewards. One compiled reader per kind of shape: two responses, a list of them, a single one.

A null label is *not measured*: a record without a preference, counted in ``notes``. A value that the configuration does not name is a
problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress
from operator import not_
from typing import Any, Final, Literal, NamedTuple

from dora_core.config.adapter import IndexLabel, Label, RanksLabel, Score, ScoresLabel, SignedLabel, UnpairedLabel, WinnerLabel
from dora_core.config.label_parts import TwoScores
from dora_core.config.path_syntax import Each, Step, in_flow
from dora_core.data.adapter.named_values import NamedValues
from dora_core.data.adapter.numbers import NOT_MEASURED, NotANumber, describe, to_number
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure
from dora_core.data.problems import Problem, Reason, problem
from dora_core.data.withdrawn import is_withdrawn, is_withdrawn_status

Kind = Literal["preference", "reward", "rank"]

TIE: Final = "tie"
SKIPPED: Final = object()
"""Label of a row that is left out by decision."""


class Verdict(NamedTuple):
    """Rewards of two responses, larger is better; kind preference: 1 and 0, or 0.5 each for a tie; kind rank: ranks, 1 = best."""

    kind: Kind
    first: float | None
    second: float | None


UNMEASURED = Verdict("preference", None, None)
PREFERS_A, PREFERS_B, PREFERS_NEITHER = Verdict("preference", 1.0, 0.0), Verdict("preference", 0.0, 1.0), Verdict("preference", 0.5, 0.5)

Compile = Callable[[str], CompiledPath]


def majority(first: float, second: float) -> Verdict:
    """The verdict of votes for two responses."""
    if first == second:
        return PREFERS_NEITHER if first else UNMEASURED
    return PREFERS_A if first > second else PREFERS_B


def label_value(path: CompiledPath, row: dict[str, Any], problems: list[Problem], notes: Counter[str]) -> Any:
    """The value of a label's column. A list (several annotations) counts if they agree; withdrawn ones are left out.

    :class:`Missing` after a problem; null where there is no annotation.
    """
    value = counting_value(path, row, notes)
    if type(value) is Missing:
        if value.absent:
            return None
        problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
        return value
    if isinstance(value, list):
        given = [item for item in value if item is not None]
        if not given:
            return None
        if any(item != given[0] or type(item) is not type(given[0]) for item in given):
            detail = f"{len(given)} annotations disagree; choose one, e.g. by `[0]` in `label.column`, or leave the row out"
            problems.append(problem(path.text, Reason.UNKNOWN_LABEL, detail))
            return Missing(path.text, detail, absent=False)
        return given[0]
    return value


def counting_value(path: CompiledPath, row: dict[str, Any], notes: Counter[str]) -> Any:
    """The value at a path without the annotations that are marked as withdrawn, which are counted.

    Marks are keys of an annotation (``dora_core/data/withdrawn.py``), or beside a list ``choice.responses`` the list
    ``choice.responses.status`` of as many, as Argilla exports them.
    """
    left_out: list[Any] = []
    for steps in path.steps() if path.is_list else ():
        row = _without_withdrawn(row, steps, 0, left_out)
    value = path.get(row)
    if type(value) is list:
        states = row.get(f"{path.roots[0]}.status")
        if type(states) is list and len(states) == len(value):
            withdrawn = list(map(is_withdrawn_status, states))
            left_out += compress(value, withdrawn)
            value = list(compress(value, map(not_, withdrawn)))
    if left_out:
        notes["annotations that were cancelled or discarded, not counted"] += len(left_out)
    return value


def _without_withdrawn(value: Any, steps: Sequence[Step], at: int, left_out: list[Any]) -> Any:
    """A value without the withdrawn elements of the lists on the way of a path."""
    if at == len(steps):
        return value
    step = steps[at]
    if at and isinstance(value, str) and looks_structured(value):
        try:
            value = parse_structure(value)
        except Unparsable:
            return value
    if isinstance(value, list) and not isinstance(step, int):
        withdrawn = list(map(is_withdrawn, value))
        left_out += compress(value, withdrawn)
        kept = compress(value, map(not_, withdrawn))
        return [_without_withdrawn(item, steps, at + isinstance(step, Each), left_out) for item in kept]
    if isinstance(value, dict) and isinstance(step, str) and step in value:
        return {**value, step: _without_withdrawn(value[step], steps, at + 1, left_out)}
    return value


class TwoSided:
    """Label of two responses (shapes ab, and pair with scores)."""

    def __init__(self, label: Label, compile_path: Compile, notes: Counter[str]):
        self.notes = notes
        self._judge: Callable[[dict[str, Any], list[Problem]], Verdict | None]
        self._checks: list[Numbers] = []
        if isinstance(label, WinnerLabel):
            self._values = NamedValues({"a": label.a, "b": label.b, TIE: label.tie})
            self._path = compile_path(label.column)
            self._checks = [Numbers([check], None, NOT_MEASURED, compile_path, "label.check") for check in label.check]
            self._judge = self._winner
        elif isinstance(label, SignedLabel):
            self._path = compile_path(label.column)
            self._band, self._positive, self._zero = label.tie_band, label.positive, label.zero
            self._judge = self._signed
        elif isinstance(label, IndexLabel):
            self._path = compile_path(label.column)
            base = label.index_base
            self._values = NamedValues({"a": [base], "b": [base + 1], TIE: label.tie})
            self._judge = self._winner
        elif isinstance(label, ScoresLabel):
            missing = NOT_MEASURED | {text.strip().casefold() for text in label.missing}
            self._numbers = Numbers(label.scores, label.weights, missing, compile_path, "label.scores")
            self._judge = self._scores
        else:
            assert isinstance(label, RanksLabel)
            self._numbers = Numbers([label.ranks], None, NOT_MEASURED, compile_path, "label.ranks")
            self._base = label.base
            self._judge = self._ranks

    def __call__(self, row: dict[str, Any], problems: list[Problem], weights: list[float] | None = None) -> Verdict | None:
        """The verdict, or None after a problem. ``weights``: of the scores, where they differ by prompt."""
        return self._judge(row, problems) if weights is None else self._scores(row, problems, weights)

    def _winner(self, row: dict[str, Any], problems: list[Problem]) -> Verdict | None:
        value = label_value(self._path, row, problems, self.notes)
        if type(value) is Missing:
            return None
        name = self._values.of(value)
        if name is None:
            if value is None or (isinstance(value, str) and value.strip().casefold() in NOT_MEASURED):
                self.notes["labels that are null"] += 1
                return UNMEASURED
            problems.append(unknown_value(self._path.text, value, self._values.allowed(), _name_it(value, ("a", "b", "tie"))))
            return None
        verdict = PREFERS_A if name == "a" else PREFERS_B if name == "b" else PREFERS_NEITHER
        for check in self._checks:
            scores = check.two(row, problems)
            if scores is None:
                return None
            one, two = scores
            if one is not None and two is not None and (one > two) - (one < two) != (name == "a") - (name == "b"):
                says = {"a": "A", "b": "B", TIE: "neither"}[name]
                detail = f"`{self._path.text}` prefers {says}, the scores say otherwise; leave the row out, or take `check` away"
                problems.append(problem(check.places(), Reason.SCORE_CONTRADICTS_LABEL, detail))
                return None
        return verdict

    def _signed(self, row: dict[str, Any], problems: list[Problem]) -> Verdict | None:
        value = label_value(self._path, row, problems, self.notes)
        if type(value) is Missing:
            return None
        try:
            number = to_number(value)
        except NotANumber as error:
            problems.append(problem(self._path.text, _reason(error), str(error)))
            return None
        if number is None:
            self.notes["labels that are null"] += 1
            return UNMEASURED
        number -= self._zero
        if abs(number) <= self._band:
            return PREFERS_NEITHER
        return PREFERS_A if (number > 0) == (self._positive == "a") else PREFERS_B

    def _scores(self, row: dict[str, Any], problems: list[Problem], weights: list[float] | None = None) -> Verdict | None:
        scores = self._numbers.two(row, problems, weights)
        return None if scores is None else Verdict("reward", *scores)

    def _ranks(self, row: dict[str, Any], problems: list[Problem]) -> Verdict | None:
        ranks = self._numbers.two(row, problems)
        if ranks is None:
            return None
        based = [based_rank(rank, self._base, self._numbers.places(), problems) for rank in ranks]
        return Verdict("rank", based[0], based[1])


class Numbers:
    """One or several scores, weighed: of two responses, of a list, or of one."""

    def __init__(self, scores: list[Score], weights: Any, missing: frozenset[str], compile_path: Compile, name: str):
        self._missing, self._name = missing, name
        self._weights = weights if isinstance(weights, list) else None
        self._paths = [tuple(map(compile_path, s.paths)) if isinstance(s, TwoScores) else (compile_path(s),) for s in scores]

    def places(self) -> str:
        return ", ".join(path.text for paths in self._paths for path in paths)

    def two(
        self, row: dict[str, Any], problems: list[Problem], weights: list[float] | None = None
    ) -> tuple[float | None, float | None] | None:
        """Scores of two responses, None after a problem. ``weights``: in place of those of the label."""
        before = len(problems)
        columns: list[list[float | None]] = []
        for paths in self._paths:
            if len(paths) == 2:
                columns.append([self._number(path.get(row), path.text, problems) for path in paths])
            else:
                columns.append(self._list(paths[0], row, 2, problems))
        if len(problems) > before:
            return None
        first, second = self._weighed(columns, 2, weights)
        return first, second

    def many(
        self, row: dict[str, Any], count: int, problems: list[Problem], weights: list[float] | None = None
    ) -> list[float | None] | None:
        """A score per response, None after a problem."""
        before = len(problems)
        columns = [self._list(paths[0], row, count, problems) for paths in self._paths]
        return self._weighed(columns, count, weights) if len(problems) == before else None

    def one(self, row: dict[str, Any], problems: list[Problem]) -> float | None:
        columns = [[self._number(paths[0].get(row), paths[0].text, problems)] for paths in self._paths]
        return self._weighed(columns, 1)[0]

    def _weighed(self, columns: list[list[float | None]], count: int, given: list[float] | None = None) -> list[float | None]:
        weights = self._weights if given is None else given
        if weights is None:
            return columns[0]
        totals: list[float | None] = []
        for i in range(count):
            total: float | None = 0.0
            for weight, column in zip(weights, columns, strict=True):
                number = column[i] if i < len(column) else None
                if weight != 0.0:
                    total = None if number is None or total is None else total + weight * number
            totals.append(total)
        return totals

    def _list(self, path: CompiledPath, row: dict[str, Any], count: int, problems: list[Problem]) -> list[float | None]:
        values = list_value(path.get(row), path, problems)
        if values is None:
            return [None] * count
        if len(values) != count:
            problems.append(problem(path.text, Reason.LENGTH_MISMATCH, f"{len(values)} numbers for {count} responses"))
            return [None] * count
        numbers: list[float | None] = []
        for i, value in enumerate(values):
            numbers.append(value if type(value) is float and value - value == 0.0 else self._number(value, path.element(i), problems, path))
        return numbers

    def _number(self, value: Any, place: str, problems: list[Problem], path: CompiledPath | None = None) -> float | None:
        if type(value) is Missing:
            if not value.absent:
                problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return None
        try:
            return to_number(value, self._missing)
        except NotANumber as error:
            detail = str(error)
            if isinstance(value, dict):
                text = path.text if path is not None else place
                keys = [key for key in value if isinstance(key, str)][:6]
                each = "" if path is None or path.is_list else "[]"
                listed = ", ".join(in_flow(f"{text}{each}.{key}") for key in keys)
                first = in_flow(f"{text}{each}.{keys[0] if keys else 'KEY'}")
                detail = f"{detail}: choose one, `label: {{scores: [{first}]}}`, or weigh them: [{listed}] with `weights`"
            problems.append(problem(place, _reason(error), detail))
            return None


class ListLabel:
    """Label of a list of responses: (rewards or ranks, kind), None after a problem."""

    def __init__(
        self, label: Label | None, compile_path: Compile, notes: Counter[str], rewards: CompiledPath | None, ranks: CompiledPath | None
    ):
        self.notes, self._label = notes, label
        self._index: CompiledPath | None = None
        self._numbers: Numbers | None = None
        self._rewards, self._ranks = rewards, ranks
        self._base = 1
        if isinstance(label, IndexLabel):
            self._index = compile_path(label.column)
            self._ties = NamedValues({TIE: label.tie})
            self._base = label.index_base
        elif isinstance(label, ScoresLabel):
            missing = NOT_MEASURED | {text.strip().casefold() for text in label.missing}
            self._numbers = Numbers(label.scores, label.weights, missing, compile_path, "label.scores")
        elif isinstance(label, RanksLabel):
            self._numbers = Numbers([label.ranks], None, NOT_MEASURED, compile_path, "label.ranks")
            self._base = label.base
        self._by_name = [
            (kind, path, Numbers([path.text], None, NOT_MEASURED, lambda text, path=path: path, f"columns.{kind}s"))  # type: ignore[misc]
            for kind, path in (("reward", rewards), ("rank", ranks))
            if path is not None and label is None
        ]

    def __call__(
        self, row: dict[str, Any], count: int, problems: list[Problem], weights: list[float] | None = None
    ) -> tuple[Kind, list[float | None]] | None:
        if self._index is not None:
            return self._best(row, count, problems)
        if self._numbers is not None:
            kind: Kind = "rank" if isinstance(self._label, RanksLabel) else "reward"
            numbers = self._numbers.many(row, count, problems, weights)
        else:
            kind, numbers = "reward", [None] * count
            for name, path, reader in self._by_name:
                value = path.get(row)
                if value is not None and type(value) is not Missing:
                    kind = "rank" if name == "rank" else "reward"
                    numbers = reader.many(row, count, problems)
                    break
        if numbers is None:
            return None
        if kind == "rank":
            before = len(problems)
            places = self._numbers.places() if self._numbers is not None else "ranks"
            numbers = [based_rank(number, self._base, places, problems) for number in numbers]
            if len(problems) > before:
                return None
        return kind, numbers

    def _best(self, row: dict[str, Any], count: int, problems: list[Problem]) -> tuple[Kind, list[float | None]] | None:
        assert self._index is not None
        value = label_value(self._index, row, problems, self.notes)
        if type(value) is Missing:
            return None
        if self._ties.of(value) is not None:
            return "reward", [0.5] * count
        try:
            number = to_number(value)
        except NotANumber as error:
            problems.append(problem(self._index.text, _reason(error), str(error)))
            return None
        if number is None:
            self.notes["labels that are null"] += 1
            return "reward", [None] * count
        if number != int(number) or not 0 <= number - self._base < count:
            allowed = f"{self._base} to {self._base + count - 1} (`label.index_base: {self._base}`)"
            problems.append(unknown_value(self._index.text, value, allowed))
            return None
        return "reward", [1.0 if i == int(number) - self._base else 0.0 for i in range(count)]


class OneLabel:
    """Label of a single response: approval as 1 or 0, a score, or a rank. :data:`SKIPPED` for rows without feedback."""

    def __init__(self, label: Label, compile_path: Compile, notes: Counter[str]):
        self.notes = notes
        self.kind: Kind = "reward"
        self._values: NamedValues | None = None
        if isinstance(label, UnpairedLabel):
            self._values = NamedValues({"true": label.true, "false": label.false, "skip": label.skip})
            self._path = compile_path(label.column)
            self._base: int | None = None
        elif isinstance(label, RanksLabel):
            self._numbers = Numbers([label.ranks], None, NOT_MEASURED, compile_path, "label.ranks")
            self._base, self.kind = label.base, "rank"
        else:
            assert isinstance(label, ScoresLabel)
            missing = NOT_MEASURED | {text.strip().casefold() for text in label.missing}
            self._numbers = Numbers(label.scores, label.weights, missing, compile_path, "label.scores")
            self._base = None

    def __call__(self, row: dict[str, Any], problems: list[Problem]) -> Any:
        """A number, None where nothing was measured, or :data:`SKIPPED`."""
        if self._values is None:
            number = self._numbers.one(row, problems)
            return number if self._base is None else based_rank(number, self._base, self._numbers.places(), problems)
        value = label_value(self._path, row, problems, self.notes)
        if type(value) is Missing:
            return None
        name = self._values.of(value)
        if name == "skip":
            self.notes["rows without feedback, left out"] += 1
            return SKIPPED
        if name is not None:
            return 1.0 if name == "true" else 0.0
        if value is None:
            detail = f"is null; rows without feedback are left out with `label.skip: [null]`; allowed: {self._values.allowed()}"
            problems.append(problem(self._path.text, Reason.MISSING_LABEL, detail))
        else:
            names = ("true", "false", "skip")
            problems.append(unknown_value(self._path.text, value, self._values.allowed(), _name_it(value, names)))
        return None


def list_value(value: Any, path: CompiledPath, problems: list[Problem]) -> list[Any] | None:
    """A list, also one written as text; None where it is null or absent, or after a problem."""
    if type(value) is list:
        return value
    if value is None:
        return None
    if type(value) is Missing:
        if not value.absent:
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
        return None
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and looks_structured(value):
        try:
            parsed = parse_structure(value)
        except Unparsable as error:
            problems.append(problem(path.text, Reason.STRUCTURED_TEXT, f"{error}, expected a list; write JSON"))
            return None
        if isinstance(parsed, list):
            return parsed
        value = parsed
    problems.append(problem(path.text, Reason.WRONG_TYPE, f"is {describe(value)}, expected a list"))
    return None


def based_rank(rank: float | None, base: int, place: str, problems: list[Problem]) -> float | None:
    """A rank counted from 1."""
    if rank is None:
        return None
    if rank < base:
        problems.append(problem(place, Reason.UNKNOWN_LABEL, f"rank {rank:g} is below the best rank {base}; see `base`"))
        return None
    return rank - base + 1


def unknown_value(place: str, value: Any, allowed: str, remedy: str = "") -> Problem:
    """Problem of a label's value that is not named; a short text is quoted, it is a name and not data."""
    shown = ascii(value[:40]) if isinstance(value, str) else repr(value) if isinstance(value, int | float) else describe(value)
    return problem(place, Reason.UNKNOWN_LABEL, f"is {shown}; allowed: {allowed or 'none'}{f'; {remedy}' if remedy else ''}")


def _name_it(value: Any, keys: Sequence[str]) -> str:
    """How a value becomes known to a label with these keys."""
    if not isinstance(value, str | int | float):
        return "map the part that holds it with `label.column`"
    *most, last = (f"`label.{key}`" for key in keys)
    return f"add it to {', '.join(most)} or {last}"


def _reason(error: NotANumber) -> Reason | Reason:
    return Reason.NONFINITE_REWARD if error.nonfinite else Reason.NOT_A_NUMBER
