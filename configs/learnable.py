"""Learnable order: gradient ascent of the objective in p, from GSPO's p = 0.

The objective rewards p for the covariance of the advantage with the spread of
the log-ratios, not for reward. Its control takes the gradient with the wrong
sign: --config.exponent.placebo=true.

Command   python experiments/main.py --config=configs/learnable.py
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 1 minute on two cores
Expected  held-out reward from .49 to .87 with seed 0, p between 0 and 1.1
"""

from hmpo_jax import config as config_lib


def get_config():
  """As hmpo.py, but for the order."""
  config = config_lib.default_config()
  config.loss.p = 0.0
  config.exponent.kind = 'learnable'
  config.exponent.normalize = True
  config.exponent.rate = 0.01  # of p, for a common update
  return config
