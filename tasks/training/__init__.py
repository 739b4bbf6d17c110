"""Training jobs: launch, worker code, Ray Train."""
