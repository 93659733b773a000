"""HMPO: does the harmonic mean of the ratios (p = -1) train a policy?

Command   python experiments/main.py --config=configs/hmpo.py
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 1 minute on two cores
Expected  held-out reward from about .54 to .90, with 10 % of the rows clipped
          at the low side and 3 % at the high one (docs/results.md)
"""

from hmpo_jax import config as config_lib


def get_config():
  """The defaults are this run's."""
  config = config_lib.default_config()
  config.loss.p = -1.0
  # As in gspo.py, so that the two differ in the mean alone. Under the policy
  # that sampled, log M_p is about (p - 1) sigma^2 / 2: the harmonic mean lies
  # lower than the geometric one, and this range clips it more often at the low
  # side and less often at the high one.
  config.loss.clip_eps_low = 0.05
  config.loss.clip_eps_high = 0.05
  return config
