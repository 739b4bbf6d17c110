"""Plug-ins: a user's own losses and objectives, without a change to this package.

``DORA_PLUGINS`` lists them, separated by commas: importable modules (``my_lab.losses``) or ``.py`` files
(``/data/squared_hinge.py``; a relative path is relative to the current folder, so prefer absolute ones where several processes read it).
Importing one runs its ``@register_loss`` and ``@register_objective`` decorators. Each is imported once per process, and only when
a name is not built in or the registry is listed. Plug-ins run with the rights of the user who set the variable; there is no sandbox.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from dora_core.environment import variable
from dora_core.errors import ConfigError

VARIABLE = "DORA_PLUGINS"


def load_plugins() -> None:
    """Import every plug-in that is not imported yet.

    Raises:
        ConfigError: a file or module is missing, or its import fails; names the plug-in, the cause and its line.
    """
    for entry in _entries():
        if entry.endswith(".py"):
            _load_file(entry)
        else:
            _load_module(entry)


def environment() -> dict[str, str]:
    """Return :data:`VARIABLE` with absolute paths, for child processes that start in another folder; empty without plug-ins."""
    entries = [str(Path(e).expanduser().resolve()) if e.endswith(".py") else e for e in _entries()]
    return {VARIABLE: ",".join(entries)} if entries else {}


def code_digest(registered: object) -> str | None:
    """Return the sha256 of the file that defines a loss or objective (instance or class); ``None`` for a built-in one.

    Part of the align stage's digest, so that edited plug-in code is a new run. It covers that one file, not what it imports.

    Raises:
        ConfigError: the class is not defined in a file, e.g. typed into a notebook.
    """
    defined = registered if isinstance(registered, type) else type(registered)
    if defined.__module__.partition(".")[0] == "dora_core":
        return None
    file = getattr(sys.modules.get(defined.__module__), "__file__", None)
    if file is None:
        raise ConfigError(
            f"{defined.__qualname__} is not defined in a file, so a stage's process cannot load it",
            hint=f"put it into a .py file and name that file in {VARIABLE}",
        )
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _entries() -> list[str]:
    return [entry for entry in map(str.strip, (variable(VARIABLE) or "").split(",")) if entry]


def _load_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(name, error) from error  # the plug-in exists; one of its own imports is missing
        raise ConfigError(
            f"plug-in {name!r} of {VARIABLE}: there is no module {error.name!r}",
            hint=f"install the package that has it into {sys.prefix}, or give the path of a .py file",
        ) from None
    except Exception as error:
        raise _failure(name, error) from error


def _load_file(entry: str) -> None:
    path = Path(entry).expanduser().resolve()
    name = f"dora_plugin_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"plug-in {entry!r} of {VARIABLE} cannot be read: {path}: {error.strerror}",
            hint=f"correct {VARIABLE}; a relative path is relative to the current folder",
        ) from None
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # before execution: pydantic resolves annotations through sys.modules
    try:
        # Not through importlib's loader: its bytecode cache compares whole seconds and could run code older than the file.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise _failure(entry, error) from error


def _failure(entry: str, error: Exception) -> ConfigError:
    """Build the error with the failing line: the outermost frame outside this module and the import system."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename} line {error.lineno}"
    else:
        machinery = (__file__, importlib.__file__)
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((f for f in frames if f.filename not in machinery and not f.filename.startswith("<frozen ")), frames[-1])
        place = f"{frame.filename} line {frame.lineno}"
    return ConfigError(
        f"plug-in {entry!r} of {VARIABLE} cannot be imported: {type(error).__name__}: {error} ({place})",
        hint=f"correct that line, or remove the plug-in from {VARIABLE}",
    )
