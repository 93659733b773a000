"""Exact gradients against finite differences, estimates against both."""

import functools
import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.analysis import estimates
from hmpo_jax.analysis import oracle
from hmpo_jax.kernels import advantages
from hmpo_jax.kernels import losses

# Compiled whole: operation by operation takes longer.
_moved = jax.jit(oracle.moved)
_gradient = jax.jit(oracle.policy_gradient)
_logprobs = jax.jit(oracle.token_logprobs)
_groups = jax.jit(oracle.group_gradients, static_argnums=0)
_scene = jax.jit(oracle.draw_scene, static_argnums=(2, 3))


def _mean(p, **clip):
  clip = {'clip_eps_low': 1 - 2.0**-20, 'clip_eps_high': math.inf} | clip
  return functools.partial(losses.power_mean_loss, p=p, **clip)


def _probabilities(theta):
  """Of all responses, in float64, one after the other."""
  theta = np.asarray(theta, np.float64)
  length, vocab_size, _ = theta.shape
  values = []
  for response in itertools.product(range(vocab_size), repeat=length):
    value, previous = 1.0, 0
    for logits, token in zip(theta, response):
      value *= np.exp(logits[previous][token]) / np.exp(logits[previous]).sum()
      previous = token
    values.append(value)
  return np.array(values)


def _finite_differences(theta, rewards, step=1e-5):
  theta = np.asarray(theta, np.float64)
  slope = np.zeros_like(theta)
  for index in np.ndindex(theta.shape):
    at = np.zeros_like(theta)
    at[index] = step
    slope[index] = (
      rewards
      @ (_probabilities(theta + at) - _probabilities(theta - at))
      / (2 * step)
    )
  return slope


def _expected(loss, theta, theta_old, task):
  """E g of one response with advantage R - J_old, as a sum over all.

  Rows whose advantage holds their probability: for losses that are homogeneous
  in |A|.
  """
  return _groups(
    loss,
    theta,
    theta_old,
    task.responses[None],
    _weighted(theta_old, task)[None],
  )[0]


def _expected_mean(p, theta, theta_old, task):
  """The same of the mean of order p without a clip."""
  return _group_of_order(
    p, theta, theta_old, task.responses[None], _weighted(theta_old, task)[None]
  )[0]


@jax.jit
def _group_of_order(p, *arguments):
  return oracle.group_gradients(_mean(p), *arguments)


def _weighted(theta_old, task):
  chances = _probabilities(theta_old)
  advantage = (task.rewards - chances @ task.rewards) * chances * len(chances)
  return jnp.float32(advantage)


def _policies(length, sigma, seed=0, vocab_size=3):
  """A task, a policy, and one that moved at random."""
  task = oracle.enumerate_task(vocab_size, length)
  scene = _scene(jax.random.key(seed), task, 'random', (2, 2))
  if length == 1:
    return task, scene.theta_old + sigma * scene.direction, scene.theta_old
  theta = _moved(scene.theta_old, scene.direction, sigma, task)
  return task, theta, scene.theta_old


def _bias(gradient, truth):
  """1 - cosine^2, from float64."""
  gradient, truth = (
    np.asarray(x, np.float64).ravel() for x in (gradient, truth)
  )
  return 1 - (gradient @ truth) ** 2 / (gradient @ gradient) / (truth @ truth)


class TaskTest(parameterized.TestCase):
  def test_enumerates_each_response_once(self):
    task = oracle.enumerate_task(2, 2)
    np.testing.assert_array_equal(
      task.responses, [[0, 0], [0, 1], [1, 0], [1, 1]]
    )
    np.testing.assert_array_equal(task.rewards, [1, 0.5, 0.5, 0])
    exact = oracle.enumerate_task(2, 2, 'exact')
    np.testing.assert_array_equal(exact.rewards, [1, 0, 0, 0])

  # All of three tokens alike.
  @parameterized.parameters(('share', 1 / 3), ('exact', 1 / 9))
  def test_expected_reward_by_hand(self, reward, expected):
    task = oracle.enumerate_task(3, 2, reward)
    value = oracle.expected_reward(jnp.zeros((2, 3, 3)), task)
    self.assertAlmostEqual(float(value), expected, places=6)

  @parameterized.product(length=(1, 4), reward=oracle.REWARDS)
  def test_gradient_is_that_of_finite_differences(self, length, reward):
    task = oracle.enumerate_task(3, length, reward)
    theta = jax.random.normal(jax.random.key(length), (length, 3, 3))
    expected = _finite_differences(theta, np.asarray(task.rewards))
    np.testing.assert_allclose(_gradient(theta, task), expected, atol=3e-7)

  def test_gradient_of_the_largest_task(self):
    # As sum_y pi(y) R(y) (1[token] - pi(token | previous)), in float64.
    task = oracle.enumerate_task(3, 8)
    theta = jax.random.normal(jax.random.key(0), (8, 3, 3))
    values = _probabilities(theta) * np.asarray(task.rewards, np.float64)
    chances = np.exp(np.asarray(theta, np.float64))
    chances /= chances.sum(axis=2, keepdims=True)
    expected = np.zeros(theta.shape)
    for value, response in zip(values, np.asarray(task.responses)):
      for position, (previous, token) in enumerate(
        itertools.pairwise([0, *response])
      ):
        expected[position, previous] -= value * chances[position, previous]
        expected[position, previous, token] += value
    np.testing.assert_allclose(_gradient(theta, task), expected, atol=1e-6)

  @parameterized.parameters((1, 2), (2, 0), (3, 11))
  def test_refuses_sizes(self, vocab_size, length):
    with self.assertRaisesRegex(ValueError, 'must be at least 2 and 1'):
      oracle.enumerate_task(vocab_size, length)

  def test_refuses_a_reward(self):
    with self.assertRaisesRegex(ValueError, 'share, exact'):
      oracle.enumerate_task(2, 2, 'length')


class MovedTest(parameterized.TestCase):
  @parameterized.product(sigma=(0.01, 0.1, 0.6), direction=oracle.DIRECTIONS)
  def test_has_the_spread(self, sigma, direction):
    task = oracle.enumerate_task(3, 4)
    scene = _scene(jax.random.key(3), task, direction, (2, 2))
    theta = _moved(scene.theta_old, 10 * scene.direction, sigma, task)
    new, old = (
      np.asarray(_logprobs(x, task.responses), np.float64)
      for x in (theta, scene.theta_old)
    )
    variance = np.var(new - old, axis=1)
    found = np.sqrt(_probabilities(scene.theta_old) @ variance)
    np.testing.assert_allclose(found, sigma, rtol=1e-4)
    np.testing.assert_allclose(
      oracle.spread(theta, scene.theta_old, task), found, rtol=1e-4
    )

  def test_stays_where_it_is_at_0(self):
    task, _, theta_old = _policies(4, 0.1)
    theta = _moved(theta_old, jnp.ones_like(theta_old), 0.0, task)
    np.testing.assert_array_equal(theta, theta_old)

  def test_direction_without_a_spread_is_not_finite(self):
    task, _, theta_old = _policies(4, 0.1)
    theta = _moved(theta_old, jnp.zeros_like(theta_old), 0.1, task)
    self.assertTrue(np.all(np.isnan(theta)))

  def test_refuses_one_token(self):
    task, theta, theta_old = _policies(1, 0.1)
    self.assertEqual(oracle.spread(theta, theta_old, task), 0)
    with self.assertRaisesRegex(ValueError, 'no spread'):
      _moved(theta_old, theta, 0.1, task)

  def test_learned_direction_earns_more(self):
    task = oracle.enumerate_task(3, 4)
    scene = _scene(jax.random.key(0), task, 'learned', (2, 2))
    theta = _moved(scene.theta_old, scene.direction, 0.3, task)
    self.assertGreater(
      oracle.expected_reward(theta, task),
      oracle.expected_reward(scene.theta_old, task) + 0.1,
    )
    with self.assertRaisesRegex(ValueError, 'random, learned'):
      _scene(jax.random.key(0), task, 'back', (2, 2))


class EstimateTest(parameterized.TestCase):
  """Expectations are sums over all responses: no sampling noise."""

  def test_draws_by_the_old_policy(self):
    task, _, theta_old = _policies(4, 0.1)
    drawn = oracle.sample(jax.random.key(0), theta_old, task, (500, 40))
    counts = np.bincount(np.ravel(drawn), minlength=81) / 20000
    chances = _probabilities(theta_old)
    error = np.sqrt(chances * (1 - chances) / 20000)
    self.assertLess(np.max(np.abs(counts - chances) / error), 4)

  @parameterized.parameters(-2, -1, 0, 0.5, 1, 2)
  def test_on_policy_each_order_is_the_truth(self, p):
    task, _, theta_old = _policies(4, 0.1)
    found = _expected_mean(p, theta_old, theta_old, task)
    truth = _gradient(theta_old, task)
    np.testing.assert_allclose(found, truth / 4, atol=1e-6)

  def test_reinforce_is_unbiased_on_policy_only(self):
    task, theta, theta_old = _policies(4, 0.3)
    loss = losses.reinforce_loss
    found = _expected(loss, theta_old, theta_old, task)
    truth = _gradient(theta_old, task)
    np.testing.assert_allclose(found, truth / 4, atol=1e-6)
    moved = _expected(loss, theta, theta_old, task)
    self.assertGreater(_bias(moved, _gradient(theta, task)), 0.02)

  @parameterized.product(length=(1, 4), sigma=(0.1, 0.6))
  def test_product_is_unbiased_wherever_the_policy_is(self, length, sigma):
    task, theta, theta_old = _policies(length, sigma)
    found = _expected(oracle.product_loss, theta, theta_old, task)
    np.testing.assert_allclose(found, _gradient(theta, task), atol=2e-6)

  def test_product_is_unbiased_in_groups(self):
    task, theta, theta_old = _policies(4, 0.3)
    drawn = oracle.sample(jax.random.key(7), theta_old, task, (20000, 4))
    of_groups, _ = advantages.group_advantages(
      task.rewards[drawn], baseline='leave_one_out', scale='none'
    )
    found = _groups(
      oracle.product_loss, theta, theta_old, task.responses[drawn], of_groups
    )
    found = np.asarray(found, np.float64).reshape(20000, -1)
    truth = np.ravel(_gradient(theta, task))
    error = found.std(axis=0) / np.sqrt(20000)
    used = error > 1e-9
    distance = (found.mean(axis=0) - truth)[used] / error[used]
    self.assertLess(np.max(np.abs(distance)), 4)
    self.assertGreater(np.sum(used), 20)

  def test_order_does_not_matter_to_one_token(self):
    task, theta, theta_old = _policies(1, 0.5)
    truth = _gradient(theta, task)
    for p in (-2, 0, 1, 2):
      found = _expected_mean(p, theta, theta_old, task)
      np.testing.assert_allclose(found, truth, atol=1e-6)

  @parameterized.parameters(0.1, 0.6)
  def test_arithmetic_mean_is_unbiased_where_tokens_are_independent(
    self, sigma
  ):
    # E_old r_t (R - b) grad_t = E (R_t - b) grad_t, as all other tokens of the
    # sum R neither meet r_t nor grad_t.
    task = oracle.enumerate_task(3, 4)
    start, way = jax.random.normal(jax.random.key(1), (2, 4, 1, 3))
    theta_old, way = (jnp.repeat(x, 3, axis=1) for x in (start, way))
    theta = _moved(theta_old, way, sigma, task)
    truth = _gradient(theta, task)
    # By position only: the gradient is in all rows of a position together.
    pooled = lambda x: np.sum(x, axis=1)
    found = {
      p: pooled(_expected_mean(p, theta, theta_old, task))
      for p in (-1, 0, 1, 2)
    }
    np.testing.assert_allclose(found[1], pooled(truth) / 4, atol=2e-6)
    for p in (-1, 0, 2):
      self.assertGreater(_bias(found[p], pooled(truth)), 0.05 * sigma**2)

  def test_a_batch_is_the_mean_of_its_groups(self):
    task, theta, theta_old = _policies(4, 0.2)
    drawn = oracle.sample(jax.random.key(0), theta_old, task, (5, 4))
    of_groups, _ = advantages.group_advantages(task.rewards[drawn])
    loss = losses.reinforce_loss
    groups = _groups(loss, theta, theta_old, task.responses[drawn], of_groups)
    batch = _groups(
      loss,
      theta,
      theta_old,
      task.responses[drawn].reshape(1, 20, 4),
      of_groups.reshape(1, 20),
    )
    np.testing.assert_allclose(
      jnp.mean(groups, axis=0), batch[0], rtol=1e-5, atol=1e-7
    )


def _power(p):
  """A loss that knows p and is quickly compiled."""

  def loss(logprobs, old_logprobs, advantages_, mask):
    del mask
    ratio = jnp.exp(p * (logprobs - old_logprobs))
    return -jnp.mean(jnp.mean(ratio, axis=1) * advantages_), {}

  return loss


class MeasureTest(absltest.TestCase):
  def test_is_each_setting_by_itself(self):
    task = oracle.enumerate_task(3, 2)
    scene = _scene(jax.random.key(0), task, 'random', (16, 4))
    kinds = [{'scale': 'std'}, {'scale': 'none'}]
    measure = jax.jit(
      functools.partial(oracle.measure, loss=_power, advantages=kinds)
    )
    found, norms = measure(
      scene, task, jnp.array([0.1, 0.4]), jnp.array([-1.0, 0.0, 1.0])
    )
    self.assertEqual(found.along.shape, (2, 2, 3))
    theta = _moved(scene.theta_old, scene.direction, 0.4, task)
    truth = _gradient(theta, task)
    np.testing.assert_allclose(norms[1], np.linalg.norm(truth), rtol=1e-5)
    of_groups, _ = advantages.group_advantages(
      task.rewards[scene.drawn], scale='none'
    )
    alone = jax.jit(estimates.moments_of)(
      _groups(
        _power(-1.0),
        theta,
        scene.theta_old,
        task.responses[scene.drawn],
        of_groups,
      ),
      truth,
    )
    for name, value in alone._asdict().items():
      np.testing.assert_allclose(
        getattr(found, name)[1, 1, 0], value, rtol=1e-4, err_msg=name
      )


if __name__ == '__main__':
  absltest.main()
