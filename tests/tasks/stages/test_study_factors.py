"""Rows of the calibration table: their labels and order."""

from __future__ import annotations

from tasks.stages._study_factors import FactorKey


def test_labels_name_form_densities_treatment_and_shift() -> None:
    assert FactorKey("classifiers", "mixture", "raw", 0.0).label == "mixture · classifiers"
    assert FactorKey("exact", "mixture", "as used", 0.0).label == "mixture · exact · as used"
    assert FactorKey("classifiers", "paper", "τ=auto, cap 0.99", 0.5).label == "paper · classifiers · τ=auto, cap 0.99 · golden shift 0.5"


def test_rows_are_ordered_by_shift_then_classifiers_before_exact_then_raw_first() -> None:
    keys = [
        FactorKey("classifiers", "mixture", "raw", 0.5),
        FactorKey("exact", "mixture", "raw", 0.0),
        FactorKey("classifiers", "mixture", "as used", 0.0),
        FactorKey("classifiers", "mixture", "raw", 0.0),
    ]
    assert sorted(keys, key=lambda key: key.order) == [keys[3], keys[2], keys[1], keys[0]]
