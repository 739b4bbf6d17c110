"""Splits and subsets that a hub folder declares: the ``configs`` in the YAML header of its README.md."""

from __future__ import annotations

from typing import Any

from dora_core.errors import DataError, did_you_mean

CARD = "README.md"


def declared_files(card: str, subset: str | None, place: str) -> dict[str, list[str]] | str | None:
    """Patterns of files by split, of one subset; the folder of a subset that names only that; None where the card declares no files.

    Args:
        card: text of README.md.
        subset: name of a subset; None takes the default or the only one.
        place: key of the configuration, for messages.

    Raises:
        DataError: the header cannot be read, there is no such subset, or there are several and none is named.
    """
    configs = [c for c in _configs(card, place) if (isinstance(c, dict) and c.get("data_files") is not None) or _has_folder(c)]
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    if subset is None:
        default = next((name for name, config in by_name.items() if config.get("default") is True), None)
        subset = default or ("default" if "default" in by_name else next(iter(by_name)) if len(by_name) == 1 else None)
        if subset is None:
            raise DataError(
                f"{place}.subset: {CARD} declares several subsets and no default", hint=f"set {place}.subset: {' or '.join(by_name)}"
            )
    if subset not in by_name:
        raise DataError(f"{place}.subset: {CARD} declares no subset {subset!r}", hint=did_you_mean(subset, by_name))
    chosen = by_name[subset]
    return str(chosen["data_dir"]).strip("/") if chosen.get("data_files") is None else _patterns(chosen, place)


def _has_folder(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("data_dir"), str)


def _configs(card: str, place: str) -> list[Any]:
    if not card.startswith("---") or "configs:" not in card:
        return []
    import yaml

    header = card[3:].partition("\n---")[0]
    try:
        metadata = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{place}.path: the YAML header of {CARD} cannot be read: {line}",
            hint=f"repair it, or name the files in {place}.data_files, e.g. {{train: 'data/train-*'}}",
        ) from error
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    return configs if isinstance(configs, list) else []


def _patterns(config: dict[str, Any], place: str) -> dict[str, list[str]]:
    folder = str(config.get("data_dir") or "").strip("/")
    prefix = f"{folder}/" if folder and folder != "." else ""
    files = config["data_files"]
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    entries = files if isinstance(files, list) else [files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        paths = path if isinstance(path, list) else [path]
        texts = [p for p in paths if isinstance(p, str)]
        if len(texts) < len(paths):
            raise DataError(
                f"{place}.path: {CARD}: `data_files` of {config.get('config_name', 'default')!r} is not a path, a list or a split's path",
                hint=f"repair it, or name the files in {place}.data_files, e.g. {{train: 'data/train-*'}}",
            )
        found.setdefault(str(split), []).extend(prefix + p for p in texts)
    return found
