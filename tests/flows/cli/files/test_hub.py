"""A model on its way to a hub: which files, one commit, and what is said when the hub refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ServiceError
from flows.cli.files.hub import files_to_push, push


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "README.md", ".MLmodel.part", "code/a.py"):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "model"


class Hub:
    def __init__(self, error: Exception | None = None):
        self.error = error
        self.sent: dict[str, Any] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.sent["private"] = private
        return f"https://hub/{repo_id}"

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        if self.error is not None:
            raise self.error
        self.sent |= {operation.path_in_repo: operation.path_or_fileobj for operation in operations}


def test_the_files_and_the_card_go_in_one_commit_from_where_they_lie(folder: Path) -> None:
    assert [path.name for path in files_to_push(folder)] == ["a.py", "config.json", "model.safetensors"]
    hub = Hub()
    assert push(hub, "team/demo", folder, "a card", private=True, message="m") == "https://hub/team/demo"
    weights = str(folder / "model.safetensors")
    expected = {"code/a.py": str(folder / "code/a.py"), "config.json": str(folder / "config.json"), "model.safetensors": weights}
    assert hub.sent == {"private": True, "README.md": b"a card"} | expected


def test_a_refusal_says_how_to_log_in(folder: Path) -> None:
    with pytest.raises(ServiceError, match="did not take team/demo: 401 Unauthorized") as refused:
        push(Hub(OSError("401 Unauthorized\nmore")), "team/demo", folder, "c", private=False, message="m")
    assert "hf auth login" in refused.value.hint
