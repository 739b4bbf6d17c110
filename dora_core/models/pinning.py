"""Pinning a model name to its weights at plan time, so that no digest outlives a change of the weights.

A hub id gets the commit its branch points at now; a local folder gets a digest of its files. Only the standard library is
imported until a hub id has to be resolved, or a folder holds an adapter.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.errors import ModelError

HASHED_WHOLE = 64 * 2**20
"""Largest file, in bytes, whose content enters the digest; a larger one enters by size and time of change (a plan must be quick)."""


def pin(model: ModelConfig) -> ModelConfig:
    """``model`` with ``revision`` (hub id) or ``content`` (local folder) filled in; ``tiny`` and pinned ids as they are.

    A folder with an adapter also gets its base: the digest of a local one in ``content``, the commit of a hub id in ``base_revision``.

    Raises:
        ModelError: the name is neither a folder nor an id that the hub or the local cache knows.
    """
    if model.is_tiny:
        return model
    folder = Path(model.source).expanduser()
    if folder.is_dir():
        return _pinned_folder(model, folder)
    return model if model.revision else model.model_copy(update={"revision": _commit(model.source)})


def _pinned_folder(model: ModelConfig, folder: Path) -> ModelConfig:
    content = folder_digest(folder)
    if not (folder / "adapter_config.json").is_file():
        return model.evolve(content=content)
    from dora_core.models.adapters import base_of

    found = base_of(folder)
    if found is None:
        return model.evolve(content=content)
    source, revision = found
    base = pin(ModelConfig(source=source, revision=revision))
    if base.content is None:
        return model.evolve(content=content, base_revision=base.revision)
    return model.evolve(content=hashlib.sha256(f"{content}\0{base.content}\0{base.base_revision}".encode()).hexdigest())


def pin_text(text: TextConfig, model: ModelConfig) -> TextConfig:
    """``text`` with the version of the rules that tokenise chats, where prompts to ``model`` are rendered by its chat template: a change of
    the rules then changes the digests of those stages alone.

    Args:
        model: pinned.

    Raises:
        ModelError: the tokenizer cannot be read, or ``text.template`` is ``chat`` and it has no chat template.
    """
    from dora_core.data.chat_format import CHAT_TOKENS, uses_chat
    from dora_core.models.model_files import model_files

    chat = not model.is_tiny and text.template != "plain" and uses_chat(model_files(model).tokenizer, text)
    return text.evolve(chat_tokens=CHAT_TOKENS if chat else None)


def folder_digest(folder: Path) -> str:
    """sha256 over names and contents of all files below ``folder``; see :data:`HASHED_WHOLE`."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        facts = path.stat()
        if facts.st_size <= HASHED_WHOLE:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = f"{facts.st_size}:{facts.st_mtime_ns}"
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def _commit(name: str) -> str:
    """The commit of a hub id's main branch: from the hub, or from the local cache where the hub is out of reach."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi().model_info(name, timeout=10).sha
        if commit:
            return commit
        reason = "the hub names no commit"
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        cached = None
    if isinstance(cached, str):
        return Path(cached).parent.name  # …/snapshots/<commit>/config.json
    raise ModelError(
        f"model {name!r} is neither a folder nor an id the Hugging Face hub or the local cache knows: {reason[:160]}",
        hint="check the name; offline, download it first or give a folder with config.json and *.safetensors; `tiny` needs neither",
    )
