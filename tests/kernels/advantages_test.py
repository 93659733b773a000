"""Group advantages: by hand, ties that must be exact, rewards that aren't."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import advantages
from tests import reference

_group_advantages = jax.jit(
  advantages.group_advantages,
  static_argnames=('baseline', 'scale', 'ddof', 'eps'),
)

_OPTIONS = {
  'baseline': ('mean', 'leave_one_out'),
  'scale': ('std', 'none'),
  'ddof': (0, 1),
}


def _rewards(num_groups=4, size=5):
  return jnp.asarray(
    np.random.default_rng(0).normal(size=(num_groups, size)), jnp.float32
  )


class ValueTest(parameterized.TestCase):
  # Rewards 0, 1, 2: mean 1, squares 2 over ddof 1 or 0; the others' means are
  # 3/2, 1, 1/2.
  @parameterized.named_parameters(
    ('default', {}, [-1, 0, 1]),
    ('population', {'ddof': 0}, [-(1.5**0.5), 0, 1.5**0.5]),
    ('leave_one_out', {'baseline': 'leave_one_out'}, [-1.5, 0, 1.5]),
    ('unscaled', {'scale': 'none'}, [-1, 0, 1]),
    (
      'unscaled_others',
      {'baseline': 'leave_one_out', 'scale': 'none'},
      [-1.5, 0, 1.5],
    ),
    ('large_eps', {'eps': 1.0}, [-0.5, 0, 0.5]),
  )
  def test_by_hand(self, options, expected):
    rewards = jnp.array([[0.0, 1.0, 2.0], [5.0, 7.0, 6.0]])
    values, _ = _group_advantages(rewards, **options)
    np.testing.assert_allclose(values[0], expected, rtol=2e-6)
    np.testing.assert_allclose(
      values[1, jnp.array([0, 2, 1])], expected, rtol=2e-6
    )

  @parameterized.product(
    baseline=('mean', 'leave_one_out'), ddof=(0, 1), size=(2, 5, 16)
  )
  def test_literal_loop(self, baseline, ddof, size):
    rewards = _rewards(size=size)
    values, _ = _group_advantages(rewards, baseline=baseline, ddof=ddof)
    expected = reference.group_advantages(
      rewards, baseline == 'leave_one_out', ddof, 1e-6
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)

  def test_metrics(self):
    rewards = jnp.array([[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]])
    metrics = _group_advantages(rewards)[1]
    np.testing.assert_allclose(metrics['advantage/reward_variance'], 1 / 2)
    np.testing.assert_allclose(metrics['advantage/zero_variance_frac'], 1 / 2)
    np.testing.assert_allclose(metrics['advantage/abs_mean'], 2 / 6, rtol=2e-6)
    # Rewards before scaling, so that only the scale of abs_mean differs.
    unscaled = _group_advantages(3 * rewards, scale='none')[1]
    np.testing.assert_allclose(unscaled['advantage/reward_variance'], 9 / 2)
    np.testing.assert_allclose(unscaled['advantage/abs_mean'], 1)
    # 3 [-1, 0, 1] and 3 [0, 0, 0].
    expected = {'mean': 0, 'std': 3**0.5, 'min': -3, 'max': 3}
    for name, value in expected.items():
      np.testing.assert_allclose(
        unscaled[f'advantage/{name}'], value, rtol=1e-6
      )
    self.assertEqual(unscaled['advantage/nonfinite_rewards'], 0)

  @hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
  @hypothesis.given(
    strategies.lists(
      strategies.floats(-1e6, 1e6, width=32), min_size=8, max_size=8
    ),
    strategies.sampled_from(_OPTIONS['baseline']),
  )
  def test_groups_sum_to_zero(self, rewards, baseline):
    values, metrics = _group_advantages(
      jnp.float32(rewards).reshape(1, 8), baseline=baseline
    )
    self.assertLess(metrics['advantage/group_sum_abs_max'], 1e-5)
    self.assertLess(abs(float(np.sum(values))), 1e-5)
    # sqrt(n) is the advantage of a single winner that is left out.
    self.assertLess(np.abs(values).max(), 8**0.5 + 1e-5)

  def test_largest_sum_of_a_group_is_reported(self):
    # Of G advantages of either sign, each rounded: about 1e-5 of 1000.
    rewards = _rewards(3, 1000)
    values, metrics = _group_advantages(rewards)
    sums = np.abs(np.sum(np.float64(values), axis=1))
    np.testing.assert_allclose(
      metrics['advantage/group_sum_abs_max'], sums.max(), atol=1e-4
    )
    self.assertLess(sums.max(), 1e-3)

  def test_groups_do_not_see_each_other(self):
    rewards = _rewards()
    changed = rewards.at[1:].multiply(100)
    np.testing.assert_array_equal(
      _group_advantages(rewards)[0][0], _group_advantages(changed)[0][0]
    )

  def test_one_winner_has_the_largest_advantage_possible(self):
    # (G - 1) / sqrt(G), however small or large the reward.
    for reward in (1e-3, 0.35, 1.0, 1e6):
      rewards = jnp.full((1, 8), 0.1).at[0, 3].set(0.1 + reward)
      values, _ = _group_advantages(rewards, eps=0.0)
      np.testing.assert_allclose(values[0, 3], 7 / 8**0.5, rtol=1e-5)

  @parameterized.product(sign=(1.0, -1.0), ddof=(0, 1))
  def test_one_that_deviates_is_bounded_though_the_others_are_equal(
    self, sign, ddof
  ):
    # The others' own deviation is 0: sqrt(8), or 8 / sqrt(7), not .35 / eps.
    rewards = jnp.full((1, 8), 0.35).at[0, 5].add(0.35 * sign)
    values, _ = _group_advantages(
      rewards, baseline='leave_one_out', ddof=ddof, eps=0.0
    )
    largest = 8**0.5 if ddof else 8 / 7**0.5
    expected = np.full(8, -largest * sign / 7)
    expected[5] = largest * sign
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)

  def test_plain_call_equals_jit(self):
    plain = advantages.group_advantages(_rewards())
    chex.assert_trees_all_close(
      _group_advantages(_rewards()), plain, rtol=1e-5, atol=1e-6
    )
    for metric in plain[1].values():
      self.assertEqual((metric.shape, metric.dtype), ((), np.float32))


class NoBaselineTest(parameterized.TestCase):
  @parameterized.parameters(
    ('none', 1, [0, 1, 2], [5, 7, 6]),
    ('std', 1, [0, 1, 2], [5, 7, 6]),
    (
      'std',
      0,
      [0, 1.5**0.5, 2 * 1.5**0.5],
      [5 * 1.5**0.5, 7 * 1.5**0.5, 6 * 1.5**0.5],
    ),
  )
  def test_by_hand(self, scale, ddof, *expected):
    rewards = jnp.array([[0.0, 1.0, 2.0], [5.0, 7.0, 6.0]])
    values, _ = _group_advantages(
      rewards, baseline='none', scale=scale, ddof=ddof
    )
    np.testing.assert_allclose(values, expected, rtol=2e-6)

  def test_unscaled_they_are_the_rewards_to_the_bit(self):
    rewards = _rewards().at[0].set(0.3).at[1, 1].set(1e6)
    values, metrics = _group_advantages(rewards, baseline='none', scale='none')
    np.testing.assert_array_equal(values, rewards)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1 / 4)
    sums = np.abs(np.sum(rewards, axis=1))
    np.testing.assert_allclose(
      metrics['advantage/group_sum_abs_max'], sums.max(), rtol=1e-6
    )

  @parameterized.parameters(0, 1)
  def test_scaled_they_are_rewards_over_the_deviation(self, ddof):
    rewards = _rewards() + 3
    values, _ = _group_advantages(rewards, baseline='none', ddof=ddof)
    wide = np.float64(rewards)
    expected = wide / (np.std(wide, axis=1, keepdims=True, ddof=ddof) + 1e-6)
    np.testing.assert_allclose(values, expected, rtol=3e-6)

  @parameterized.parameters(0.0, 1e-6)
  def test_equal_rewards_count_unscaled_and_are_zero_scaled(self, eps):
    rewards = jnp.array([[0.7] * 5, [0.0] * 5, [-2.0] * 5])
    options = {'baseline': 'none', 'eps': eps}
    scaled, metrics = _group_advantages(rewards, **options)
    np.testing.assert_array_equal(scaled, 0)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1)
    unscaled, metrics = _group_advantages(rewards, scale='none', **options)
    np.testing.assert_array_equal(unscaled, rewards)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1)

  def test_what_is_not_finite_is_zero_and_one_reward_is_a_signal(self):
    rewards = jnp.array(
      [[np.nan, 0.5, np.inf], [1.0, np.nan, 3.0], [np.nan, -np.inf, np.inf]]
    )
    unscaled, metrics = _group_advantages(
      rewards, baseline='none', scale='none'
    )
    np.testing.assert_array_equal(unscaled, [[0, 0.5, 0], [1, 0, 3], [0, 0, 0]])
    self.assertEqual(metrics['advantage/nonfinite_rewards'], 6)
    scaled, metrics = _group_advantages(rewards, baseline='none')
    np.testing.assert_allclose(
      scaled, [[0, 0, 0], [0.5**0.5, 0, 3 * 0.5**0.5], [0, 0, 0]], rtol=2e-6
    )
    chex.assert_tree_all_finite(metrics)

  @parameterized.parameters(1e30, 3.4e38, 1e-30)
  def test_no_size_overflows(self, size):
    rewards = size * np.float32([[1, -1, 1, 1], [1, 1, 1, 1]])
    values, metrics = _group_advantages(rewards, baseline='none', eps=0.0)
    np.testing.assert_allclose(values, [[1, -1, 1, 1], [0] * 4], rtol=1e-6)
    self.assertFalse(any(np.isnan(list(metrics.values()))))

  def test_large_offset_keeps_its_digits(self):
    rewards = np.float32(1e6 + (np.arange(7) % 3 == 0))[None]
    values, _ = _group_advantages(rewards, baseline='none')
    np.testing.assert_allclose(
      values,
      rewards / (np.std(rewards, ddof=1, dtype=np.float64) + 1e-6),
      rtol=1e-6,
    )


class NumbersTest(parameterized.TestCase):
  # Their float32 mean rounds: a residue of 1e-8 over a standard deviation of
  # 1e-8 would be an advantage of about 1.
  @parameterized.product(
    group=((0.1, 7), (0.3, 6), (1e6 + 0.3, 7), (0.0, 5), (-0.7, 11)),
    baseline=('mean', 'leave_one_out'),
    scale=('std', 'none'),
    eps=(0.0, 1e-8, 1e-6),
  )
  def test_equal_rewards_give_exactly_zero(self, group, baseline, scale, eps):
    reward, size = group
    values, metrics = _group_advantages(
      jnp.full((1, size), reward), baseline=baseline, scale=scale, eps=eps
    )
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
      metrics['advantage/reward_variance'], np.var(rewards, ddof=1), rtol=1e-5
    )

  def test_difference_of_one_rounding_is_no_signal(self):
    rewards = np.full((1, 4), np.float32(0.3))
    rewards[0, 1] = np.nextafter(rewards[0, 1], np.float32(1))
    values, _ = _group_advantages(jnp.asarray(rewards))
    self.assertLess(np.abs(values).max(), 0.05)

  # Also where float32 can hold the reward, but no square or difference of it.
  @parameterized.product(size=(1e30, 3.4e38), baseline=_OPTIONS['baseline'])
  def test_huge_rewards_do_not_overflow(self, size, baseline):
    signs = np.float32([[1, -1, 1, 1], [0, 0, 0, -1], [1, 1, 1, 1]])
    expected, _ = _group_advantages(signs, baseline=baseline, eps=0.0)
    for eps in (0.0, 1e-6):
      values, metrics = _group_advantages(
        size * signs, baseline=baseline, eps=eps
      )
      np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['advantage/zero_variance_frac'], 1 / 3)
    self.assertFalse(any(np.isnan(list(metrics.values()))))
    unscaled, _ = _group_advantages(1e30 * signs, scale='none')
    np.testing.assert_allclose(
      unscaled[0], 5e29 * np.float32([1, -3, 1, 1]), rtol=1e-6
    )

  @parameterized.parameters(1e-38, 1e-42, 1e-20)
  def test_tiny_differences_neither_vanish_nor_explode(self, size):
    # Those below 1e-38 are 0 to XLA, and so are no signal.
    rewards = size * np.float32([[1, 0, 0, 0]])
    values, metrics = _group_advantages(rewards, eps=0.0)
    chex.assert_tree_all_finite((values, metrics))
    if size > 1e-38:
      np.testing.assert_allclose(values[0, 0], 1.5, rtol=1e-6)
    damped, _ = _group_advantages(rewards)
    self.assertLess(np.abs(damped).max(), 1e-13)

  @parameterized.product(**_OPTIONS, eps=(0.0, 1e-6), size=(1, 2))
  def test_group_without_comparison_is_zero(self, size, **options):
    rewards = jnp.array([[0.3, 0.3], [-7.0, -7.0], [np.nan, 2.0]])[:, -size:]
    values, metrics = _group_advantages(rewards, **options)
    np.testing.assert_array_equal(values, 0)
    chex.assert_tree_all_finite(metrics)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1)
    self.assertEqual(metrics['advantage/nonfinite_rewards'], size - 1)

  @parameterized.product(value=(np.nan, np.inf, -np.inf), **_OPTIONS)
  def test_not_finite_is_left_out_of_its_group(self, value, **options):
    rewards = _rewards()
    spoiled = rewards.at[1, 2].set(value).at[2, 0].set(value)
    values, metrics = _group_advantages(spoiled, **options)
    whole, _ = _group_advantages(rewards, **options)
    for i, finite in ((1, [0, 1, 3, 4]), (2, [1, 2, 3, 4])):
      others, _ = _group_advantages(
        rewards[i : i + 1, jnp.array(finite)], **options
      )
      np.testing.assert_allclose(
        values[i, jnp.array(finite)], others[0], rtol=2e-6
      )
    self.assertEqual((values[1, 2], values[2, 0]), (0, 0))
    for i in (0, 3):
      np.testing.assert_array_equal(values[i], whole[i])
    chex.assert_tree_all_finite(metrics)
    self.assertEqual(metrics['advantage/nonfinite_rewards'], 2)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 0)
    variances = [
      np.var(r[np.isfinite(r)], ddof=options['ddof'])
      for r in np.asarray(spoiled)
    ]
    np.testing.assert_allclose(
      metrics['advantage/reward_variance'], np.mean(variances), rtol=1e-5
    )

  @parameterized.product(**_OPTIONS)
  def test_literal_loop_over_what_is_finite(self, baseline, scale, ddof):
    rng = np.random.default_rng(3)
    rewards = np.float32(rng.normal(size=(6, 7)))
    rewards[rng.random(rewards.shape) < 0.4] = np.nan
    expected = np.zeros(rewards.shape)
    for i, group in enumerate(rewards):
      kept = [j for j, reward in enumerate(group) if np.isfinite(reward)]
      known = np.float64(group[kept])
      if len(kept) < 2:
        continue
      for j, reward in zip(kept, known):
        mean = sum(known) / len(known)
        if baseline == 'leave_one_out':
          mean = (sum(known) - reward) / (len(known) - 1)
        expected[i, j] = reward - mean
        if scale == 'std':
          expected[i, j] /= np.std(known, ddof=ddof) + 1e-6
    values, _ = _group_advantages(
      rewards, baseline=baseline, scale=scale, ddof=ddof
    )
    np.testing.assert_allclose(values, expected, rtol=3e-6, atol=1e-6)

  @parameterized.product(**_OPTIONS)
  def test_fewer_than_two_finite_rewards_are_no_signal(self, **options):
    rewards = jnp.array([[np.nan, np.nan, np.inf], [np.nan, 0.7, -np.inf]])
    values, metrics = _group_advantages(rewards, **options)
    np.testing.assert_array_equal(values, 0)
    chex.assert_tree_all_finite(metrics)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 1)
    self.assertEqual(metrics['advantage/nonfinite_rewards'], 5)
    self.assertEqual(metrics['advantage/reward_variance'], 0)

  @parameterized.parameters(jnp.bfloat16, jnp.float16, jnp.int32, bool)
  def test_other_types_are_computed_in_float32(self, dtype):
    rewards = jnp.array([[0, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype)
    values, metrics = _group_advantages(rewards)
    expected, _ = _group_advantages(rewards.astype(jnp.float32))
    self.assertEqual(values.dtype, np.float32)
    np.testing.assert_array_equal(values, expected)
    self.assertEqual(metrics['advantage/zero_variance_frac'], 0.5)


class ContractTest(absltest.TestCase):
  def test_float64(self):
    with reference.x64():
      rewards = jnp.asarray(1e6 + np.random.default_rng(0).random((3, 5)))
      values, metrics = _group_advantages(rewards)
      expected = reference.group_advantages(rewards, False, 1, 1e-6)
      np.testing.assert_allclose(values, expected, rtol=1e-8)
      for leaf in (values, *metrics.values()):
        self.assertEqual(leaf.dtype, np.float64)
      narrow, _ = _group_advantages(rewards.astype(jnp.float32))
      self.assertEqual(narrow.dtype, np.float32)

  def test_vmap_and_one_program(self):
    traces = []

    @jax.jit
    def run(rewards):
      traces.append(None)
      return jax.vmap(advantages.group_advantages)(rewards)

    spoiled = _rewards().at[0, 0].set(np.nan)
    together = run(jnp.stack([_rewards(), spoiled]))
    run(jnp.stack([spoiled, spoiled]))
    self.assertLen(traces, 1)
    for i, rewards in enumerate((_rewards(), spoiled)):
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], together),
        _group_advantages(rewards),
        rtol=1e-5,
        atol=1e-6,
      )

  def test_gradient_is_finite(self):
    rewards = _rewards().at[0].set(0.3).at[1, 1].set(np.nan)
    of = lambda x: jnp.sum(advantages.group_advantages(x)[0] ** 2)
    self.assertTrue(np.all(np.isfinite(jax.jit(jax.grad(of))(rewards))))


class ErrorsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('rank', (4,), {}, AssertionError, 'rank'),
    ('baseline', (4, 2), {'baseline': 'median'}, ValueError, 'median'),
    ('scale', (4, 2), {'scale': 'range'}, ValueError, 'range'),
    ('ddof', (4, 2), {'ddof': 2}, ValueError, 'ddof=2: must be 0 or 1'),
  )
  def test_raises_when_traced(self, shape, options, error, message):
    with self.assertRaisesRegex(error, message):
      jax.eval_shape(
        lambda x: advantages.group_advantages(x, **options),
        jax.ShapeDtypeStruct(shape, jnp.float32),
      )


_permute = jax.jit(advantages.permute_within_groups)


class PermuteTest(absltest.TestCase):
  def test_keeps_the_values_of_each_group(self):
    values = _rewards(6, 8)
    permuted = _permute(jax.random.key(0), values)
    np.testing.assert_array_equal(
      np.sort(permuted, axis=1), np.sort(values, axis=1)
    )
    self.assertFalse(np.array_equal(permuted, values))

  def test_groups_are_shuffled_apart(self):
    # Six rows in one order have a chance of 1 / 8!^5.
    rows = _permute(jax.random.key(0), jnp.tile(jnp.arange(8.0), (6, 1)))
    self.assertGreater(len(np.unique(rows, axis=0)), 1)

  def test_follows_the_key(self):
    values = _rewards(6, 8)
    first, again, other = (
      _permute(jax.random.key(seed), values) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  def test_every_response_gets_every_place(self):
    keys = jax.random.split(jax.random.key(0), 200)
    places = jax.vmap(_permute, (0, None))(keys, jnp.arange(4.0)[None])[:, 0]
    counts = np.stack([np.sum(places == i, axis=0) for i in range(4)])
    # 50 expected, standard deviation 6.
    self.assertTrue(np.all(np.abs(counts - 50) < 30), counts)


class NoRewardTest(parameterized.TestCase):
  @parameterized.parameters((0, 3), (3, 0))
  def test_raises(self, *shape):
    with self.assertRaisesRegex(ValueError, 'must hold a group'):
      advantages.group_advantages(jnp.zeros(shape))


if __name__ == '__main__':
  absltest.main()
