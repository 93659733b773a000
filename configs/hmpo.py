"""HMPO: does the harmonic mean of the ratios (p = -1) train a policy?

Command   python experiments/main.py --config=configs/hmpo.py
"""

from hmpo_jax import config as config_lib


def get_config():
  """The defaults are this run's."""
  config = config_lib.default_config()
  config.loss.p = -1.
  return config
