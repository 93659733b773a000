"""HoelderPO: an order that falls from 2 to -2 while the policy trains.

Command   python experiments/main.py --config=configs/hoelder.py
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 1 minute on two cores
Expected  held-out reward from .49 to .92 with seed 0
Source    https://arxiv.org/abs/2605.12058
"""

from hmpo_jax import config as config_lib


def get_config():
  """As hmpo.py, but for the order, which is linear in the step."""
  config = config_lib.default_config()
  config.loss.p = 2.0
  config.exponent.kind = 'linear'
  config.exponent.end = -2.0
  config.exponent.num_steps = 300.0
  return config
