"""Held-out metrics, win rates, diversity, drift, LLM judging."""
