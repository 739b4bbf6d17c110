"""Read preference data from a file: rows become canonical records, bad rows become named problems.

The schema is recognised by its columns; here the pairs have other names, and the configuration says which.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from dora_core.config.data import DataConfig
from dora_core.data.adapted import AdaptedInput
from dora_core.data.inputs import fingerprint_sources, inputs_of
from dora_core.data.problems import Problem
from dora_core.data.records import Record, Rules, parse_canonical

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
        data = DataConfig.model_validate({"train": [{"path": str(path), "columns": {"prompt": "question"}, "source": "some-lm"}]})
        fingerprints = fingerprint_sources(data)  # {uri: sha256}: the identity of the input
        source = AdaptedInput(inputs_of(data)[0], fingerprints)
        print(source.mappings[0].resolved.in_words())
        records, problems = [], []
        for row in source.rows():
            parsed = row.value if isinstance(row.value, list) else parse_canonical(row.value, Rules(default_source="some-lm"))
            if isinstance(parsed, Record):
                records.append(parsed)
            else:
                problems += [problem._replace(field=row.column_of(problem.field)) for problem in parsed]
    for record in records:
        print(record.prompt[0]["content"], record.responses, record.rewards, record.sources)
    for problem in problems:
        print(f"problem: {problem.field}: {problem.reason}: {problem.detail}")
    return records, problems


if __name__ == "__main__":
    main()
