"""One reader of environment variables: a variable that is set to nothing is not set.

Compose files, units and CI systems leave an undefined variable as an empty one; read literally, an empty path is the current folder and an
empty address is a malformed one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def variable(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the value of an environment variable; None if it is not set, empty, or white space alone.

    Args:
        environment: read instead of this process's.
    """
    value = (os.environ if environment is None else environment).get(name, "")
    return value if value.strip() else None


def set_default(name: str, value: str) -> None:
    """Set a variable of this process unless it has a value."""
    if variable(name) is None:
        os.environ[name] = value
