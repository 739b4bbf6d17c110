"""Settings of the method, typed, described and bounded."""
