"""Which runs can be made longer."""

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.run import growth


def _refusal(num_steps=400, **keys):
  config = config_lib.default_config()
  for key, value in keys.items():
    section, name = key.split('__')
    config[section][name] = value
  return growth.refusal(config.to_dict(), num_steps)


class GrowthTest(parameterized.TestCase):
  @parameterized.parameters('fixed', 'learnable', 'matched', 'adaptive')
  def test_what_a_step_alone_decides_may_go_on(self, kind):
    self.assertEqual(_refusal(exponent__kind=kind), '')

  def test_staleness_and_decay_are_carried_on(self):
    self.assertEqual(
      _refusal(rollout__staleness=3, optim__weight_decay=0.1), ''
    )

  @parameterized.parameters('linear', 'cosine', 'replayed')
  def test_schedule_is_refused_by_its_key(self, kind):
    self.assertIn(
      f"config.exponent.kind = '{kind}'", _refusal(exponent__kind=kind)
    )

  def test_controller_is_refused_by_its_key(self):
    self.assertIn(
      "config.control.function = 'a:b'", _refusal(control__function='a:b')
    )

  def test_no_run_is_made_shorter(self):
    self.assertEqual(_refusal(num_steps=300), '')
    self.assertIn('shorter', _refusal(num_steps=299))


if __name__ == '__main__':
  absltest.main()
