"""Group advantages: by hand, ties that must be exact, rewards that aren't."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import advantages
from tests import reference

_group_advantages = jax.jit(
    advantages.group_advantages,
    static_argnames=('baseline', 'scale', 'ddof', 'eps'))


def _rewards(num_groups=4, size=5):
  return jnp.asarray(
      np.random.default_rng(0).normal(size=(num_groups, size)), jnp.float32)


class ValueTest(parameterized.TestCase):

  # Rewards 0, 1, 2: mean 1, squares 2 over ddof 1 or 0; the others' means are
  # 3/2, 1, 1/2.
  @parameterized.named_parameters(('default', {}, [-1, 0, 1]), ('population', {
      'ddof': 0
  }, [-1.5**.5, 0, 1.5**.5]), ('leave_one_out', {
      'baseline': 'leave_one_out'
  }, [-1.5, 0, 1.5]), ('unscaled', {
      'scale': 'none'
  }, [-1, 0, 1]), ('unscaled_others', {
      'baseline': 'leave_one_out',
      'scale': 'none'
  }, [-1.5, 0, 1.5]), ('large_eps', {
      'eps': 1.
  }, [-.5, 0, .5]))
  def test_by_hand(self, options, expected):
    rewards = jnp.array([[0., 1., 2.], [5., 7., 6.]])
    values, _ = _group_advantages(rewards, **options)
    np.testing.assert_allclose(values[0], expected, rtol=2e-6)
    np.testing.assert_allclose(
        values[1, jnp.array([0, 2, 1])], expected, rtol=2e-6)

  @parameterized.product(
      baseline=('mean', 'leave_one_out'), ddof=(0, 1), size=(2, 5, 16))
  def test_literal_loop(self, baseline, ddof, size):
    rewards = _rewards(size=size)
    values, _ = _group_advantages(rewards, baseline=baseline, ddof=ddof)
    expected = reference.group_advantages(rewards, baseline == 'leave_one_out',
                                          ddof, 1e-6)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)

  def test_metrics(self):
    rewards = jnp.array([[0., 1., 2.], [4., 4., 4.]])
    metrics = _group_advantages(rewards)[1]
    np.testing.assert_allclose(metrics['advantage/reward_variance'], 1 / 2)
    np.testing.assert_allclose(metrics['advantage/zero_variance_frac'], 1 / 2)
    np.testing.assert_allclose(metrics['advantage/abs_mean'], 2 / 6, rtol=2e-6)
    # Rewards before scaling, so that only the scale of abs_mean differs.
    unscaled = _group_advantages(3 * rewards, scale='none')[1]
    np.testing.assert_allclose(unscaled['advantage/reward_variance'], 9 / 2)
    np.testing.assert_allclose(unscaled['advantage/abs_mean'], 1)

  @parameterized.parameters('mean', 'leave_one_out')
  def test_groups_sum_to_zero(self, baseline):
    values, _ = _group_advantages(_rewards(), baseline=baseline)
    np.testing.assert_allclose(np.sum(values, axis=1), 0, atol=1e-6)

  def test_groups_do_not_see_each_other(self):
    rewards = _rewards()
    changed = rewards.at[1:].multiply(100)
    np.testing.assert_array_equal(
        _group_advantages(rewards)[0][0],
        _group_advantages(changed)[0][0])

  def test_one_winner_has_the_largest_advantage_possible(self):
    # (G - 1) / sqrt(G), however small or large the reward.
    for reward in (1e-3, .35, 1., 1e6):
      rewards = jnp.full((1, 8), .1).at[0, 3].set(.1 + reward)
      values, _ = _group_advantages(rewards, eps=0.)
      np.testing.assert_allclose(values[0, 3], 7 / 8**.5, rtol=1e-5)

  def test_plain_call_equals_jit(self):
    plain = advantages.group_advantages(_rewards())
    chex.assert_trees_all_close(_group_advantages(_rewards()), plain, rtol=1e-5)
    for metric in plain[1].values():
      self.assertEqual((metric.shape, metric.dtype), ((), np.float32))


class NumbersTest(parameterized.TestCase):

  # Their float32 mean rounds: a residue of 1e-8 over a standard deviation of
  # 1e-8 would be an advantage of about 1.
  @parameterized.product(
      group=((.1, 7), (.3, 6), (1e6 + .3, 7), (0., 5), (-.7, 11)),
      baseline=('mean', 'leave_one_out'),
      scale=('std', 'none'),
      eps=(0., 1e-8, 1e-6))
  def test_equal_rewards_give_exactly_zero(self, group, baseline, scale, eps):
    reward, size = group
    values, metrics = _group_advantages(
        jnp.full((1, size), reward), baseline=baseline, scale=scale, eps=eps)
    np.testing.assert_array_equal(values, 0)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1)
    self.assertEqual(metrics['advantage/reward_variance'], 0)

  @parameterized.parameters(2, 7, 64, 1000)
  def test_large_offset(self, size):
    # A mean of float32 rewards near 1e6 is only exact to 1/16.
    rewards = 1e6 + (np.arange(size) % 3 == 0)
    values, metrics = _group_advantages(jnp.float32(rewards[None]))
    expected = reference.group_advantages(rewards[None], False, 1, 1e-6)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose(
        metrics['advantage/reward_variance'],
        np.var(rewards, ddof=1),
        rtol=1e-5)

  def test_difference_of_one_rounding_is_no_signal(self):
    rewards = np.full((1, 4), np.float32(.3))
    rewards[0, 1] = np.nextafter(rewards[0, 1], np.float32(1))
    values, _ = _group_advantages(jnp.asarray(rewards))
    self.assertLess(np.abs(values).max(), .05)

  @parameterized.product(value=(np.nan, np.inf, -np.inf), scale=('std', 'none'))
  def test_not_finite_is_seen_in_the_whole_group_alone(self, value, scale):
    rewards = _rewards()
    spoiled = rewards.at[1, 2].set(value)
    values, metrics = _group_advantages(spoiled, scale=scale)
    expected, _ = _group_advantages(rewards, scale=scale)
    self.assertTrue(np.all(np.isnan(values[1])))
    for i in (0, 2, 3):
      np.testing.assert_array_equal(values[i], expected[i])
    self.assertEqual(metrics['advantage/zero_variance_frac'], 0)

  def test_group_of_nans_is_not_a_tie(self):
    values, metrics = _group_advantages(jnp.full((1, 3), jnp.nan))
    self.assertTrue(np.all(np.isnan(values)))
    self.assertEqual(metrics['advantage/zero_variance_frac'], 0)

  @parameterized.parameters(jnp.bfloat16, jnp.float16, jnp.int32, bool)
  def test_other_types_are_computed_in_float32(self, dtype):
    rewards = jnp.array([[0, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype)
    values, metrics = _group_advantages(rewards)
    expected, _ = _group_advantages(rewards.astype(jnp.float32))
    self.assertEqual(values.dtype, np.float32)
    np.testing.assert_array_equal(values, expected)
    self.assertEqual(metrics['advantage/zero_variance_frac'], .5)


class ErrorsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('singleton', (4, 1), {}, ValueError, 'at least 2'),
      ('rank', (4,), {}, AssertionError, 'rank'), ('baseline', (4, 2), {
          'baseline': 'median'
      }, ValueError, 'median'), ('scale', (4, 2), {
          'scale': 'range'
      }, ValueError, 'range'))
  def test_raises_when_traced(self, shape, options, error, message):
    with self.assertRaisesRegex(error, message):
      jax.eval_shape(lambda x: advantages.group_advantages(x, **options),
                     jax.ShapeDtypeStruct(shape, jnp.float32))


_permute = jax.jit(advantages.permute_within_groups)


class PermuteTest(absltest.TestCase):

  def test_keeps_the_values_of_each_group(self):
    values = _rewards(6, 8)
    permuted = _permute(jax.random.key(0), values)
    np.testing.assert_array_equal(
        np.sort(permuted, axis=1), np.sort(values, axis=1))
    self.assertFalse(np.array_equal(permuted, values))

  def test_groups_are_shuffled_apart(self):
    # Six rows in one order have a chance of 1 / 8!^5.
    rows = _permute(jax.random.key(0), jnp.tile(jnp.arange(8.), (6, 1)))
    self.assertGreater(len(np.unique(rows, axis=0)), 1)

  def test_follows_the_key(self):
    values = _rewards(6, 8)
    first, again, other = (
        _permute(jax.random.key(seed), values) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  def test_every_response_gets_every_place(self):
    keys = jax.random.split(jax.random.key(0), 200)
    places = jax.vmap(_permute, (0, None))(keys, jnp.arange(4.)[None])[:, 0]
    counts = np.stack([np.sum(places == i, axis=0) for i in range(4)])
    # 50 expected, standard deviation 6.
    self.assertTrue(np.all(np.abs(counts - 50) < 30), counts)


if __name__ == '__main__':
  absltest.main()
