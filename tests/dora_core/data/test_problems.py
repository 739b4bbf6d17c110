"""Reasons as they stand in tables: machine codes that later releases must not change."""

from __future__ import annotations

import subprocess
import sys

from dora_core.data.problems import Problem, Reason


def test_codes_are_the_names_in_lower_case() -> None:
    assert {reason.name.lower() for reason in Reason} == {reason.value for reason in Reason} and len(Reason) == 15
    assert f"{Problem('id', Reason.DUPLICATE_ID, 'twice').reason}" == "duplicate_id"


def test_the_schema_of_the_configuration_loads_no_reader() -> None:
    """Formats name problems, and the configuration names formats: none of them may load pyarrow, which takes 0.2 s."""
    code = "import sys, dora_core.config.method; assert not {'pyarrow', 'numpy', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
