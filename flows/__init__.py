"""What Prefect schedules, and the ``dora`` command line."""
