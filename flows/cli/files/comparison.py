"""``dora evaluate OURS THEIRS``: two judged files, win / tie / lose. The arithmetic is that of the ``compare`` stage; it takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.config.method import EvaluateConfig
from dora_core.errors import DataError, did_you_mean
from flows.cli.files.tables import read_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tasks.stages.compare import Facts, Side


def compare_files(ours: Path, theirs: Path, evaluate: EvaluateConfig) -> Facts:
    """Return the facts of the comparison in the form of the ``compare`` stage, with one opponent, named after its file.

    Records are matched by prompt where both files have one, else by ``record_id``.

    Raises:
        DataError: a column is missing, nothing can be matched, or the scores are not of one judge.
    """
    import numpy as np

    from tasks.stages.compare import Comparison, Facts

    tables = {path: read_rows(path) for path in (ours, theirs)}
    for path, table in tables.items():
        for column in ("score", "response"):
            if column not in table.column_names:
                raise DataError(
                    f"{path} has no column {column!r}", hint=f"`dora judge` writes one; {did_you_mean(column, table.column_names)}"
                )
    judge_name = _one_judge(tables)
    key = next((name for name in ("prompt", "record_id") if all(name in t.column_names for t in tables.values())), None)
    if key is None:
        raise DataError(f"{ours} and {theirs} have neither `prompt` nor `record_id` in common", hint="give both files one of them")
    place_of: dict[str, int] = {}
    sides = [_side(table, key, place_of) for table in tables.values()]
    found = Comparison.of(*sides)
    if len(found.row_R) == 0:
        raise DataError(
            f"no response of {ours} has a score beside one of {theirs} to the same {key.removesuffix('_id')}",
            hint="compare responses to the same prompts; a score that is null means that the judge reached no verdict",
        )
    groups = {name: _groups(tables[ours], name, key, place_of, sides[0]) for name in ("source", "task")}
    wins = found.wins(evaluate, np.arange(len(sides[0].record_R)), groups)
    return Facts(judge=judge_name, wins={theirs.name: wins})


def _one_judge(tables: Mapping[Path, pa.Table]) -> str:
    names = {name for table in tables.values() for name in (set(table["judge"].to_pylist()) if "judge" in table.column_names else {None})}
    if len(names) > 1:
        raise DataError(
            f"the scores come from different judges ({', '.join(map(str, sorted(names, key=str)))}), so their differences mean nothing",
            hint="judge both files with the same options of `dora judge`",
        )
    name = str(names.pop() or "unnamed")
    if "(each other)" in name:
        raise DataError(
            "the llm judge compared responses of one file with each other, so scores of two files have nothing in common",
            hint="judge both with --against FILE, one file of responses to the same prompts",
        )
    return name


def _side(table: pa.Table, key: str, place_of: dict[str, int]) -> Side:
    """Scores and lengths by record; new records are added to ``place_of``."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.stages.compare import Side

    try:
        score = table["score"].cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"a score is not a number: {error}", hint="scores are numbers, or null where a judge reached no verdict") from None
    record = np.array([place_of.setdefault(name, len(place_of)) for name in _keys(table, key)], dtype=np.int64)
    characters = pc.utf8_length(table["response"].cast(pa.string())).fill_null(0).to_numpy().astype(np.float64)
    counted = "tokens" in table.column_names and table["tokens"].null_count == 0
    tokens = table["tokens"].to_numpy().astype(np.float64) if counted else None
    order = np.argsort(record, kind="stable")
    return Side.of(record[order], score[order], characters[order], None if tokens is None else tokens[order])


def _keys(table: pa.Table, key: str) -> list[str]:
    """Return the identity of every row's record as text; a prompt is the same as a string and as one user message."""
    values = table[key].to_pylist()
    if key == "prompt":
        values = [[{"role": "user", "content": value}] if isinstance(value, str) else value for value in values]
    return [json.dumps(value, sort_keys=True) for value in values]


def _groups(table: pa.Table, name: str, key: str, place_of: Mapping[str, int], side: Side) -> np.ndarray:
    """Return the value of column ``name`` in the first row of each record of ``side``; None without one."""
    import numpy as np

    found: dict[int, Any] = {}
    if name in table.column_names:
        for record, value in zip(_keys(table, key), table[name].to_pylist(), strict=True):
            found.setdefault(place_of[record], value)
    return np.array([found.get(record) for record in side.record_R.tolist()], dtype=object)


COLUMNS = ("prompts of", "win", "tie", "lose", "win rate", "at equal length", "sign test p", "prompts")


def table_rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    """Cells under :data:`COLUMNS`: all prompts, then each source and task."""
    from flows.report.numbers import interval, p_value, percent

    (found,) = facts.wins.values()
    tables = {"source": found.by_source, "task": found.by_task}
    groups = {f"{by} {name}": group for by, table in tables.items() for name, group in table.items()}
    for name, row in ({"all": found} | groups).items():
        shares = [percent(share.value) for share in (row.win, row.tie, row.lose)]
        tested = [interval(found.length_controlled), p_value(found.sign_test_p)] if name == "all" else ["", ""]
        yield name, *shares, interval(row.win_rate), *tested, str(row.win_rate.n)


def summary(ours: Path, facts: Facts) -> str:
    ((theirs, found),) = facts.wins.items()
    left = f"; {found.records_left_out} more of ours have no judged counterpart" if found.records_left_out else ""
    return f"{ours.name} against {theirs}, judge: {facts.judge}, {found.records} records compared{left}"


def markdown(ours: Path, facts: Facts) -> str:
    """Return the comparison as a Markdown page."""
    lines = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *table_rows(facts)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "Win rate = win + half the ties; intervals are bootstrapped over prompts."
    return f"# {ours.name}\n\n{summary(ours, facts)}.\n\n{table}\n\n{notes}\n"
