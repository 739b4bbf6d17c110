"""Runs a plan: tasks, jobs, the manifest, and the end of a run."""
