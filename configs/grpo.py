"""GRPO: every token's ratio clipped by itself, the token-level baseline.

Command   python experiments/main.py --config=configs/grpo.py
"""

from hmpo_jax import config as config_lib


def get_config():
  """As hmpo.py, but for the loss."""
  config = config_lib.default_config()
  config.loss.name = 'grpo'
  # PPO's and TRL's usual range: single tokens scatter more than their means.
  config.loss.clip_eps_low = 0.2
  config.loss.clip_eps_high = 0.2
  return config
