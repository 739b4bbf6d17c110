"""Opening all inputs of a configuration: adapters resolved, rules of suspicion told the files and the evaluation texts."""

from __future__ import annotations

from collections.abc import Mapping

from dora_core.config.data import DataConfig
from dora_core.data.adapted import AdaptedInput
from dora_core.data.inputs import inputs_of
from dora_core.data.reference_texts import reference_texts
from dora_core.data.suspicion import Suspicion


def open_inputs(data: DataConfig, fingerprints: Mapping[str, str], *, references: bool = True) -> tuple[list[AdaptedInput], Suspicion]:
    """Every input with its adapter, and the rules that will see its records.

    Args:
        references: read the files of ``data.decontaminate``.

    Raises:
        DataError, ConfigError: an input cannot be read as configured, or needs a decision.
    """
    suspicion = Suspicion(data)
    inputs = [AdaptedInput(item, fingerprints) for item in inputs_of(data)]
    for source in inputs:
        for mapping in source.mappings:
            suspicion.opened(source.item.place, mapping.files, mapping.gives_split)
    for text in reference_texts(data, fingerprints) if references else ():
        suspicion.reference(text)
    return inputs, suspicion
