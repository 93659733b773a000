"""Experiment plans: variants x tasks x seeds, from their file to their runs."""
