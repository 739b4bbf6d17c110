"""Copy a registered model to a hub of Hugging Face: its folder and its card, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from dora_core.errors import ServiceError

LEFT_OUT = {".gitattributes", "README.md"}


class Hub(Protocol):
    """The calls of ``huggingface_hub.HfApi`` that are made."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...
    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> Any: ...


def files_to_push(folder: Path) -> list[Path]:
    """Return the files of a model folder that go to the hub; the card goes with them."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LEFT_OUT and not path.name.startswith(".")]


def push(hub: Hub, repo: str, folder: Path, card: str, *, private: bool, message: str) -> str:
    """Create the repository if there is none, and commit the model; returns the repository's address.

    Nothing is copied on this machine. Files that the repository has and the model has not stay there.

    Raises:
        ServiceError: the hub refuses, or does not answer. The repository may exist then, without the commit.
    """
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files_to_push(folder)]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    try:
        url = hub.create_repo(repo, private=private, exist_ok=True)
        hub.create_commit(repo, operations, commit_message=message)
    except (OSError, ValueError) as error:  # HTTP errors of the hub, no network, a name that it does not take
        raise ServiceError(
            f"the hub did not take {repo}: {str(error).strip().splitlines()[0]}",
            hint="log in with `hf auth login` (or set HF_TOKEN) as a user who may write there; HF_ENDPOINT names another hub",
        ) from error
    return str(url)
