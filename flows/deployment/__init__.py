"""Deployments of the flows on a Prefect server, with their forms."""
