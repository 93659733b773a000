"""GSPO: the geometric mean of the ratios (p = 0), the baseline of HMPO.

Command   python experiments/main.py --config=configs/gspo.py
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 1 minute on two cores
Expected  held-out reward from about .54 to .90 (docs/results.md)
"""

from hmpo_jax import config as config_lib


def get_config():
  """As hmpo.py, but for the order of the mean."""
  config = config_lib.default_config()
  config.loss.p = 0.0
  # The paper (https://arxiv.org/abs/2507.18071, section 5.1) clips at 3e-4 and
  # 4e-4, for responses of thousands of tokens. Nine tokens average less noise
  # away: the mean of their ratios leaves that range with the first update, and
  # every row with it. 0.05 clips about one row in six here.
  config.loss.clip_eps_low = 0.05
  config.loss.clip_eps_high = 0.05
  return config
