"""Prompts and rewards: seeded, deterministic, verifiable."""
