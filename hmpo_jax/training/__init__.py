"""The step of a run: rollout, updates and metrics, as pure functions."""
