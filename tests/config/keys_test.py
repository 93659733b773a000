"""The table of keys: one row says all of a key that is said of it alone."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections

from hmpo_jax import config as config_lib
from hmpo_jax.config import keys
from hmpo_jax.config import rules
from hmpo_jax.config.key_rows import row
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses
from hmpo_jax.optim import factory


class TableTest(absltest.TestCase):
  def test_default_config_has_the_values_of_the_rows(self):
    config = config_lib.default_config()
    flat = config_lib.flat(config.to_dict())
    self.assertCountEqual(flat, keys.ROWS)
    for key, found in keys.ROWS.items():
      self.assertEqual(flat[key], found.default)
      self.assertIs(type(flat[key]), type(found.default), key)
    self.assertIsInstance(config.loss, ml_collections.ConfigDict)
    self.assertIsNot(config.loss, config_lib.default_config().loss)

  def test_every_default_is_in_its_range(self):
    for key, found in keys.ROWS.items():
      self.assertTrue(found.allowed.holds(found.default), key)

  def test_every_row_has_a_known_role_and_says_what_it_means(self):
    for key, found in keys.ROWS.items():
      self.assertIn(found.role, row.ROLES, key)
      self.assertRegex(found.meaning, r'^\S.*[^.\s]$', key)
    for section, content in keys.SECTIONS.items():
      self.assertRegex(content.meaning, r'^[A-Z].*\.$', section)

  def test_flags_and_texts_have_a_range_of_their_own(self):
    for key, found in keys.ROWS.items():
      is_flag = isinstance(found.default, bool)
      self.assertEqual(is_flag, found.allowed is row.FLAG, key)
      if found.allowed in (row.FILE, row.FOLDER, row.FUNCTION):
        self.assertEqual(found.default, '', key)

  def test_keys_of_a_range(self):
    self.assertEqual(keys.of_range(row.FILE), ('task.prompts', 'exponent.path'))
    self.assertEqual(
      keys.of_range(row.FUNCTION), ('reward.function', 'control.function')
    )
    self.assertEqual(keys.of_range(row.FOLDER), ('warm_start.folder',))

  def test_a_key_of_the_table_that_a_meaning_names_exists(self):
    for found in keys.ROWS.values():
      for name in re.findall(r'`(\w+\.\w+)`', found.meaning):
        self.assertIn(name, keys.ROWS)

  def test_values_are_those_of_a_role_by_section(self):
    config = config_lib.default_config()
    config.warm_start.stop_reward = 0.5
    self.assertEqual(
      keys.values(config, 'switch'),
      {'warm_start': {'stop_reward': 0.5}, 'mechanism': {'every': 20}},
    )
    self.assertEqual(
      keys.values(config, 'loop')[''], {'seed': 0, 'num_steps': 300}
    )


class OptionsTest(absltest.TestCase):
  """What other modules say of keys fits the table."""

  def test_every_option_of_a_loss_is_a_row(self):
    rows = keys.SECTIONS['loss'].rows
    for option in losses.OPTIONS:
      # Losses branch on what is no number.
      is_number = isinstance(rows[option].default, float)
      self.assertEqual(rows[option].role, 'traced' if is_number else 'static')

  def test_every_key_of_an_optimizer_is_a_row(self):
    self.assertContainsSubset(factory.KEYS, keys.SECTIONS['optim'].rows)

  def test_meanings_name_the_kinds_of_order_that_use_a_key(self):
    for name, found in keys.SECTIONS['exponent'].rows.items():
      named = re.split(r'[:,] ', found.meaning)
      for kind in exponents.KINDS:
        is_used = name in rules.EXPONENT_KEYS[kind]
        self.assertEqual(kind in named, is_used, f'{name}: {kind}')


class RangeTest(parameterized.TestCase):
  @parameterized.parameters(
    (row.at_least(2), (2, 3, float('inf')), (1,)),
    (row.finite_at_least(0), (0, 3.4e38), (-1e-9, float('inf'))),
    (row.from_to(1, 3), (1, 3), (0, 4)),
    (row.one_of('a', 'b'), ('a', 'b'), ('', 'ab')),
    (row.POSITIVE, (1e-30,), (0, float('inf'))),
    (row.POSITIVE_OR_INF, (1e-30, float('inf')), (0,)),
    (row.FINITE, (-1e38, 0), (float('inf'), float('-inf'))),
    (row.ORDER_OR_INF, (-1e38, float('inf')), (float('-inf'),)),
    (row.UNIT, (0, 1), (-0.1, 1.1)),
    (row.BELOW_ONE, (0, 0.999), (-0.1, 1)),
    (row.SECONDS, (0.1, 1e6), (0, 1e6 + 1)),
    (row.ITERATIONS, (1, 10), (0, 11)),
    (row.WIDTH, (1e-6, 0.999), (9e-7, 1)),
  )
  def test_bounds(self, allowed, inside, outside):
    for value in inside:
      self.assertTrue(allowed.holds(value), value)
    for value in (*outside, float('nan')):
      self.assertFalse(allowed.holds(value), value)

  def test_words(self):
    self.assertEqual(row.at_least(2).words, 'at least 2')
    self.assertEqual(row.finite_at_least(0).words, 'finite and at least 0')
    self.assertEqual(row.from_to(1, 3).words, 'from 1 to 3')
    self.assertEqual(row.one_of('a', 1).words, 'one of a, 1')


if __name__ == '__main__':
  absltest.main()
