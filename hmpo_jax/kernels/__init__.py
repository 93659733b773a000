"""Pure functions of arrays: means, losses, advantages, log-probabilities."""
