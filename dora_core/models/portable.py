"""Model folders for others: the files of a policy in a form that plain transformers, from release 4.45 on, and its servers read alike.

transformers 5 renamed keys that release 4 reads, which would load without an error and compute other numbers: the base of the rotary
embedding is in ``rope_parameters`` (4: ``rope_theta``, else 10,000; ``rope_scaling``; for Gemma 3 ``rope_local_base_freq``), the data
type in ``dtype`` (4: ``torch_dtype``), and a tokenizer's class is ``TokenizersBackend``, which 4 refuses (``PreTrainedTokenizerFast``).
Saved models have both forms; release 5 reads its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dora_core.errors import ConfigError, ModelError

LEFT_OUT = {".gitattributes"}
ADAPTER = "adapter_config.json"


def export_model(source: Path, target: Path, *, merge: bool = False) -> list[str]:
    """Copy a model folder in the portable form, whole or not at all.

    Args:
        source: Hugging Face folder, of a model or of an adapter.
        target: must not exist, or be empty.
        merge: fold an adapter into its base, whose name its configuration has; a model is copied as it is.

    Returns:
        Notes on what older releases cannot read.

    Raises:
        ConfigError: the target has files. ModelError: the source is not a model folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder", hint="name a new folder")
    is_adapter = (source / ADAPTER).is_file()
    if not is_adapter and not (source / "config.json").is_file():
        raise ModelError(f"{source} is not a model folder: it has no config.json", hint="name a folder that save_pretrained has written")
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if merge and is_adapter:
            _merge(source, aside)
        else:
            for path in sorted(source.iterdir()):
                if path.is_file() and path.name not in LEFT_OUT:
                    shutil.copyfile(path, aside / path.name)  # with the mode of a new file: weights may be readable by their owner alone
        notes = make_portable(aside)
        if target.exists():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return notes


def _merge(adapter: Path, target: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(adapter, torch_dtype="auto").merge_and_unload()
    model.save_pretrained(target, safe_serialization=True)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(target)


def make_portable(folder: Path) -> list[str]:
    """Add the keys of transformers 4 to the configurations in ``folder``; returns notes."""
    notes: list[str] = []
    for name, change in (("config.json", _portable_config), ("tokenizer_config.json", _portable_tokenizer)):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            changed, found = change(content)
            notes += found
            path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return notes


def _portable_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    found, notes = dict(config), list[str]()
    if "dtype" in config:
        found.setdefault("torch_dtype", config["dtype"])
    for part in ("text_config", "llm_config"):
        if isinstance(config.get(part), dict):
            found[part], more = _portable_config(config[part])
            notes += more
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        if all(isinstance(value, dict) for value in rope.values()) and rope:
            if set(rope) == {"full_attention", "sliding_attention"}:
                keys, local = _rope_of_4(rope["full_attention"]), rope["sliding_attention"]
                found |= {name: value for name, value in keys.items() if name not in found}
                found.setdefault("rope_local_base_freq", local.get("rope_theta"))
            else:
                notes.append(f"rotary embeddings by kind of layer ({', '.join(rope)}): transformers 5 or later is needed")
        else:
            found |= {name: value for name, value in _rope_of_4(rope).items() if name not in found}
    return found, notes


def _rope_of_4(rope: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` (None for plain rotary embeddings) of one set of parameters."""
    keys: dict[str, Any] = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if "partial_rotary_factor" in rope:
        keys["partial_rotary_factor"] = rope["partial_rotary_factor"]
    plain = rope.get("rope_type", "default") == "default"
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    return keys | {"rope_scaling": None if plain else scaling}


def _portable_tokenizer(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    found = {name: value for name, value in config.items() if name not in ("is_local", "local_files_only")}
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    return found, []
