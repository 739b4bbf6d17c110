"""Canonical records, the readers of input files, and text as tokens."""
