"""Array operations below the model: attention, log-probabilities."""
