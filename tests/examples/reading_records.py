"""Read preference data from a file: rows become canonical records, bad rows become named problems.

Pairwise (chosen, rejected) and listwise (responses, rewards) files are recognised by their columns; a mapping gives other names.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from dora_core.config.adapter import AdapterColumns
from dora_core.config.data import DataConfig, DataSource
from dora_core.data.inputs import fingerprint_sources, inputs_of, open_input
from dora_core.data.records import Problem, Record, Rules, parse_row

ROWS = [
    {"question": "Why is the sky blue?", "chosen": "Rayleigh scattering.", "rejected": "Magic.", "chosen_source": "human"},
    {"question": "Name a prime.", "chosen": "7", "rejected": "7"},  # equal responses express no preference
    {"question": "Name a colour.", "chosen": "green"},
]


def main() -> tuple[list[Record], list[Problem]]:
    """Return the valid records and the problems of the other rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preferences.jsonl"
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
        data = DataConfig(train=[DataSource(path=str(path), columns=AdapterColumns(prompt="question"), source="some-lm")])
        fingerprints = fingerprint_sources(data)  # {uri: sha256}: the identity of the input
        records, problems = [], []
        for file in open_input(inputs_of(data)[0], fingerprints):
            for _, row in file.rows():
                parsed = parse_row(row, file.form, Rules(default_source="some-lm"))
                if isinstance(parsed, Record):
                    records.append(parsed)
                else:
                    problems += parsed
    for record in records:
        print(record.prompt[0]["content"], record.responses, record.rewards, record.sources)
    for problem in problems:
        print(f"problem: {problem.field}: {problem.reason}: {problem.detail}")
    return records, problems


if __name__ == "__main__":
    main()
