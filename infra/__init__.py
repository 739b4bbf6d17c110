"""Servers, Ray jobs, store, tracking and settings of a machine."""
