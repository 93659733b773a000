"""Stress: attention logits that explode unless the QK-clip holds them.

Command   python experiments/main.py --config=configs/stress.py
          and the same with --config.optim.qk_clip=off
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      half a minute on two cores; stress.py:long, responses of some 500
          tokens, about 10 minutes
Expected  the largest attention logit rises from 6 to tau = 30 within 70 steps,
          stays below 40 with the clip, and reaches 80 to 95 without it; hardly
          anything is learned at this learning rate (docs/muonclip.md)
"""

from hmpo_jax import config as config_lib


def get_config(length='short'):
  """As hmpo.py at 23 times its learning rate; `length` is short or long."""
  config = config_lib.default_config()
  config.num_steps = 200
  config.optim.learning_rate = 7e-3
  config.optim.tau = 30.0
  config.optim.monitor_tau = 30.0
  config.eval.every = 50
  if length == 'long':
    config.num_steps = 20
    config.task.num_digits = 511
    config.rollout.num_prompts = 4
    # So long a response seldom comes to its end by chance.
    config.rollout.temperature = 0.5
    config.warm_start.num_steps = 100
    config.warm_start.batch_size = 16
    config.train.num_microbatches = 2
    # In 160 updates to where the short task comes in 500.
    config.optim.learning_rate = 3e-2
    config.eval.num_prompts = 8
  elif length != 'short':
    raise ValueError(f'{length!r}: must be short or long')
  return config
