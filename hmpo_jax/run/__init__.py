"""Runs with their folders: trainer, records, checkpoints, controllers."""
