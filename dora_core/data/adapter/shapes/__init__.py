"""Shapes of rows, one file each. A new shape is a new file here; ``base.py`` describes what it has to define."""
