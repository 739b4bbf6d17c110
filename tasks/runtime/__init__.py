"""Runtime of the stages: specs, shards, actors, caches."""
