"""Optax transformations: MuonClip and the choice of an optimizer."""
