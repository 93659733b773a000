"""Pure functions of arrays: means, ratios, clips, losses, KL."""
