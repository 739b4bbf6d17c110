"""Names made up by Prefect, as it makes them today, and names that people type."""

from __future__ import annotations

import pytest
from prefect.utilities.names import generate_slug

from flows.planning.generated_names import is_generated


def test_every_name_of_prefects_server_is_recognised() -> None:
    assert [name for name in (generate_slug(2) for _ in range(300)) if not is_generated(name)] == []


@pytest.mark.parametrize("name", ["alpha3-cygni", "omega17-ursae-majoris", "pi-tauri-nebula"])
def test_names_of_the_form_are_recognised(name: str) -> None:
    assert is_generated(name)


@pytest.mark.parametrize("name", ["nightly", "higher lr", "try-lr-2e4", "demo · 2026-11-30 · lr 1e-4→2e-4", "Brave-Otter", "release-1", ""])
def test_names_of_people_are_kept(name: str) -> None:
    assert not is_generated(name)
