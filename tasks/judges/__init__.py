"""Judges: a file per kind, each ending in its descriptor."""
