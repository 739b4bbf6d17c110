"""Flows that Prefect schedules, and the ``dora`` command line."""
