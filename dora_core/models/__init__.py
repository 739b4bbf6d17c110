"""Language models: loading, log-probabilities, packing, generation."""
