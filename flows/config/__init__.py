"""From YAML and --set to a validated configuration."""
