"""The external AGM client in charge of a run, from base values of the run.

  python experiments/main.py --config=configs/hmpo.py \
      --config.control.function=experiments/agm_adapter.py:Adapter

It needs the client's package, agmlib (github.com/Gman-Superfly/AGM_Training).
Left alone the client suggests multiples of a learning rate of 1e-3 and of a
clip width of 0.1, whatever the run was set to.
"""

from collections.abc import Mapping

from agmlib import agm

from hmpo_jax.run import control

# The client's own base, where its own bounds cut nothing.
_BASE = {
  'learning_rate': 1e-3,
  'epsilon': 0.1,
  'batch_size': 256,
  'agm_iterations': 5,
}


class Adapter:
  """Asks for the client's multiples of what the configuration says."""

  def __init__(self, config):
    self._suite = agm.ControllerSuite(base_hyperparams=_BASE)
    self._first = control.first_settings(config)

  def __call__(self, record: Mapping) -> dict:
    """Decisions from the record of a step."""
    # The client takes the slope of eval_reward, which stands still between
    # evaluations; the training reward is measured in every step.
    fed = dict(record) | {'eval_reward': record['train_reward_mean']}
    answer = self._suite.update(agm.build_telemetry_from_hmpo_record(fed))
    suggested = answer['hyperparams']
    return {
      name: getattr(self._first, name) * suggested[name] / _BASE[name]
      for name in ('learning_rate', 'epsilon')
    } | {
      'agm_iterations': suggested['agm_iterations'],
      'early_stop': answer['early_stop'],
    }
