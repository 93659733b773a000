"""Smoke run: every part of a run once, in seconds; its numbers say nothing.

Command   python experiments/main.py --config=configs/smoke.py
Time      below 1 minute on two cores, of which nearly all is compilation
"""

from hmpo_jax import config as config_lib


def get_config():
  """HMPO on five digits with a policy of one layer."""
  config = config_lib.default_config()
  config.num_steps = 6
  config.task.num_digits = 5
  config.model.num_layers = 1
  config.model.embed_dim = 32
  config.model.num_heads = 2
  config.model.num_kv_heads = 1
  config.model.mlp_dim = 64
  config.rollout.num_prompts = 4
  config.rollout.group_size = 4
  config.warm_start.num_steps = 20
  config.eval.every = 3
  config.eval.num_prompts = 64
  config.mechanism.every = 3
  config.checkpoint.every = 3
  return config
