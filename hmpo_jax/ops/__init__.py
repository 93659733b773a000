"""Array operations below the model: attention, products, vocabulary."""
