"""From a configuration to stages with digests and reasons."""
