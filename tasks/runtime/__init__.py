"""What every stage runs on: specs, shards, actors, caches."""
