"""What Prefect offers to start."""
