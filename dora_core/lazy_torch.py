"""``torch`` for modules that the command line imports: loaded at its first use, a second and 150 MB later than at import.

The registries of losses and objectives name what a configuration may ask for, so a plan reads them, and computes nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.nn.functional import logsigmoid

    __all__ = ["logsigmoid", "torch"]
else:

    class _LazyModule(ModuleType):
        """Stands for the module of the same name; every attribute is looked up there, once."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch = _LazyModule("torch")

    def logsigmoid(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.logsigmoid(values)
