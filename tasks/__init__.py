"""Stages, each a thin program over ``dora_core``, and their runtime on Ray."""
