"""Names of outcomes by the values that mean them, as a label or a filter of rows gives them."""

from __future__ import annotations

from typing import Any

from dora_core.config.label_parts import Value, value_forms


class NamedValues:
    """Names of outcomes by the values that mean them, compared as value and as text."""

    def __init__(self, named: dict[str, list[Value]]):
        self.named = named
        self._forms = {form: name for name, values in named.items() for value in values for form in value_forms(value)}
        self._cache: dict[tuple[type, Any], str | None] = {}

    def of(self, value: Any) -> str | None:
        """The outcome that a value means, None if it is not named."""
        key = (type(value), value)
        try:
            if key in self._cache:
                return self._cache[key]
        except TypeError:  # a list or a struct
            return None
        found: str | None = None
        if value is None or isinstance(value, str | int | float | bool):
            found = next((self._forms[form] for form in value_forms(value) if form in self._forms), None)
        if len(self._cache) < 4096:
            self._cache[key] = found
        return found

    def allowed(self) -> str:
        """The values in words, for a message."""
        return "; ".join(f"{name}: {', '.join(map(repr, values))}" for name, values in self.named.items() if values)
