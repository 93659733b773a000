"""Adaptive order: the gap between arithmetic and harmonic mean moves p.

Command   python experiments/main.py --config=configs/adaptive.py
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 1 minute on two cores
Expected  held-out reward from .49 to .86 with seed 0, p from 0 to its bound -2
"""

from hmpo_jax import config as config_lib


def get_config():
  """As hmpo.py, but for the order, which starts at GSPO's p = 0."""
  config = config_lib.default_config()
  config.loss.p = 0.0
  config.exponent.kind = 'adaptive'
  return config
