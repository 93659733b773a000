"""What of a configuration is traced, and what decides the program."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.config import keys
from hmpo_jax.config import traced


def _with(key, value):
  config = config_lib.default_config()
  config.update_from_flattened_dict({key: value})
  return config


def _another(key, value):
  """A value that a key's default is not; it need not go with the others."""
  others = {
    'exponent.kind': 'linear',
    'reward.kind': 'exact',
    'loss.name': 'grpo',
    'optim.name': 'adamw',
  }
  if isinstance(value, str):
    return others.get(key, f'{value}-2')
  if isinstance(value, bool):
    return not value
  return value + 1 if math.isfinite(value) else 3.0


class PartitionTest(parameterized.TestCase):
  @parameterized.parameters(*keys.ROWS.items())
  def test_a_key_changes_what_its_role_says(self, key, row):
    default, found = config_lib.default_config(), row.default
    values = [_another(key, found)]
    if row.role == 'switch':
      values = [0.5, 0.7] if isinstance(found, float) else [10, 0]
    configs = [default, *(_with(key, value) for value in values)]
    static = {traced.static(config) for config in configs}
    hparams = {str(traced.hparams(config)) for config in configs}
    # A switch is on in two of its three values.
    self.assertLen(static, 2 if row.role in ('static', 'switch') else 1)
    self.assertLen(hparams, 2 if row.role == 'traced' else 1)

  def test_every_key_is_either_traced_or_static_or_the_loops(self):
    config = config_lib.default_config()
    changed = traced.static(config)
    config.loss.p = 0.25
    config.num_steps = 7
    config.seed = 5
    self.assertEqual(hash(traced.static(config)), hash(changed))
    config.model.num_layers = 3
    self.assertNotEqual(traced.static(config), changed)

  def test_replayed_orders_are_one_for_each_step(self):
    config = config_lib.default_config()
    config.num_steps, config.loss.p = 3, 0.25
    orders = np.float32([0.1, -0.2, 0.3, 0.4, 0.5])
    path = lambda count: traced.hparams(config, orders[:count]).exponent.path
    np.testing.assert_array_equal(path(5), [np.float32(0.25)])
    config.exponent.kind = 'replayed'
    np.testing.assert_array_equal(path(5), orders[:3])
    np.testing.assert_array_equal(path(2), orders[[0, 1, 1]])
    for missing in (None, orders[:0]):
      with self.assertRaisesRegex(ValueError, 'needs the orders'):
        traced.hparams(config, missing)

  def test_hparams_are_strong_scalars_but_for_the_path(self):
    config = config_lib.default_config()
    config.loss.p = 1
    hparams = traced.hparams(config)
    for path, value in jax.tree_util.tree_leaves_with_path(hparams):
      name = jax.tree_util.keystr(path)
      self.assertEqual(value.shape, (1,) if '.path' in name else ())
      self.assertFalse(value.weak_type, name)
      is_kind, is_flag = '.kind' in name, value.dtype == bool
      self.assertEqual(
        value.dtype,
        jnp.int32 if is_kind else jnp.bool_ if is_flag else jnp.float32,
        name,
      )
    self.assertIsInstance(
      traced.static(config_lib.default_config()),
      ml_collections.FrozenConfigDict,
    )


if __name__ == '__main__':
  absltest.main()
