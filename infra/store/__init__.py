"""Content-addressed results on any filesystem."""
