"""Lazy ``torch`` for modules that the command line imports: loaded at first use instead of at import.

Planning a run needs the names and parameters in the registries of losses and objectives, but no tensors. Importing torch for that
would cost a second and 150 MB.
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
        """Placeholder of the module of the same name; an attribute is looked up there at its first use and cached."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch = _LazyModule("torch")

    def logsigmoid(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.logsigmoid(values)
