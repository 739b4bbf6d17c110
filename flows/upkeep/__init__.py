"""Garbage collection and reaping."""
