"""KL estimates: by hand, by enumeration, and for policies far apart."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import kl
from tests import reference

_GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
_BOUND, _REACH = 10.0, 1e4
_MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)


def _batch(dtype=np.float32):
  """Rows of 4, 2, 1 and 0 tokens under pi, its anchor and its sampler."""
  rng = np.random.default_rng(2)
  logprobs = rng.uniform(-3, -1, size=_MASK.shape)
  moved = (logprobs + s * rng.normal(size=_MASK.shape) for s in (0.7, 0.3))
  return tuple(jnp.asarray(x, dtype) for x in (logprobs, *moved))


@functools.partial(jax.jit, static_argnums=0)
def _kl(estimator, logprobs, ref_logprobs, mask, old_logprobs=None):
  """(penalty, metrics) and its gradients by logprobs and by ref_logprobs."""
  of = functools.partial(
    kl.kl_penalty, mask=mask, estimator=estimator, old_logprobs=old_logprobs
  )
  return jax.value_and_grad(of, (0, 1), has_aux=True)(logprobs, ref_logprobs)


_in_reward = jax.jit(kl.kl_in_reward, static_argnames='estimator')
_kl_metrics = jax.jit(kl.kl_metrics)


def _of_token(estimator, logprob, ref_logprob, old_logprob=None):
  """Penalty of a single token, and metrics; plain, for jit, grad and vmap."""
  single = lambda x: None if x is None else jnp.asarray(x)[None, None]
  return kl.kl_penalty(
    single(logprob),
    single(ref_logprob),
    np.ones((1, 1), bool),
    estimator=estimator,
    old_logprobs=single(old_logprob),
  )


@functools.partial(jax.jit, static_argnums=0)
def _one(estimator, logprob, ref_logprob):
  """Penalty, slope and metrics of a single token."""
  of = functools.partial(_of_token, estimator)
  (value, metrics), slope = jax.value_and_grad(of, has_aux=True)(
    *jnp.float32([logprob, ref_logprob])
  )
  return value, slope, metrics


def _literal(estimator, d):
  """Value and slope d/dd of an estimate at one gap, in float64."""
  near = min(max(d, -_BOUND), _BOUND)
  far = min(max(d, -_REACH), _REACH) - near
  value, slope = {
    'k1': (-near, -1),
    'abs': (abs(near), math.copysign(1, near) if near else 0),
    'k2': (near**2 / 2, near),
    'k3': (math.expm1(near) - near, math.expm1(near)),
  }[estimator.removesuffix('+')]
  value += slope * far
  return value, near if estimator == 'k3+' else slope


class ValueTest(parameterized.TestCase):
  # d = [-1/2, 0] in a row of two tokens, 1 in a row of one.
  @parameterized.named_parameters(
    ('abs', 'abs', [1 / 2, 0, 1], [1, 0, -1]),
    ('k2', 'k2', [1 / 8, 0, 1 / 2], [1 / 2, 0, -1]),
    (
      'k3',
      'k3',
      [np.exp(-0.5) - 0.5, 0, np.e - 2],
      [1 - np.exp(-0.5), 0, 1 - np.e],
    ),
    (
      'straight_through',
      'k3+',
      [np.exp(-0.5) - 0.5, 0, np.e - 2],
      [1 / 2, 0, -1],
    ),
  )
  def test_by_hand(self, estimator, terms, slopes):
    logprobs = jnp.array([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]])
    ref_logprobs = jnp.array([[-1.5, -2.0], [-2.0, -7.0], [-5.0, -5.0]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    (value, metrics), (by_logprobs, by_ref) = _kl(
      estimator, logprobs, ref_logprobs, mask
    )
    np.testing.assert_allclose(
      value, ((terms[0] + terms[1]) / 2 + terms[2]) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
      by_logprobs,
      [[slopes[0] / 4, slopes[1] / 4], [slopes[2] / 2, 0], [0, 0]],
      rtol=1e-6,
    )
    np.testing.assert_array_equal(by_ref, 0)
    self.assertEqual(metrics['kl/wide_gap_frac'], 0)

  @parameterized.product(
    estimator=kl.LOSS_ESTIMATORS, weighted=(False, True), spread=(1.0, 20.0)
  )
  def test_literal_loop(self, estimator, weighted, spread):
    logprobs, ref_logprobs, old_logprobs = _batch()
    ref_logprobs = logprobs + spread * (ref_logprobs - logprobs)
    (value, _), (by_logprobs, _) = _kl(
      estimator,
      logprobs,
      ref_logprobs,
      _MASK,
      old_logprobs if weighted else None,
    )
    rows, slopes = [], np.zeros(_MASK.shape)
    for i in range(3):
      tokens = np.flatnonzero(_MASK[i])
      terms = []
      for t in tokens:
        new, ref, old = (
          float(x[i, t]) for x in (logprobs, ref_logprobs, old_logprobs)
        )
        weight = math.exp(new - old) if weighted else 1
        term, slope = _literal(estimator, ref - new)
        terms.append(weight * term)
        slopes[i, t] = -weight * slope / len(tokens) / 3
      rows.append(sum(terms) / len(terms))
    np.testing.assert_allclose(value, sum(rows) / 3, rtol=3e-6)
    np.testing.assert_allclose(by_logprobs, slopes, rtol=3e-6)

  @parameterized.parameters(*kl.LOSS_ESTIMATORS)
  def test_is_zero_at_the_anchor_and_on_nothing(self, estimator):
    logprobs, _, _ = _batch()
    self.assertEqual(_kl(estimator, logprobs, logprobs, _MASK)[0][0], 0)
    for empty in (np.zeros_like(_MASK), _MASK[:0], _MASK[:, :0]):
      x = logprobs[: empty.shape[0], : empty.shape[1]]
      (value, metrics), gradients = _kl(estimator, x + 1, x, empty, x)
      self.assertEqual((value, metrics['kl/wide_gap_frac']), (0, 0))
      for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters('abs', 'k2', 'k3')
  def test_finite_differences(self, estimator):
    with reference.x64():
      logprobs, ref_logprobs, _ = _batch(np.float64)
      # Beyond the bound on either side, too.
      ref_logprobs = ref_logprobs.at[0, :2].add(jnp.array([12.0, -12.0]))
      of = lambda x: _kl(estimator, x, ref_logprobs, _MASK)
      by_logprobs = of(logprobs)[1][0]
      for index in np.ndindex(_MASK.shape):
        step = np.zeros(_MASK.shape)
        step[index] = 1e-5
        difference = (
          of(logprobs + step)[0][0] - of(logprobs - step)[0][0]
        ) / 2e-5
        np.testing.assert_allclose(
          by_logprobs[index], difference, rtol=1e-8, atol=1e-7
        )

  def test_has_a_second_derivative(self):
    # e^d within the bound, 0 on the tangent; by logprobs as by d.
    slope = jax.grad(lambda *pair: _of_token('k3', *pair)[0])
    curvature = jax.jit(jax.grad(slope))
    for d, expected in ((0.5, np.exp(0.5)), (-2.0, np.exp(-2.0)), (11.0, 0)):
      np.testing.assert_allclose(curvature(0.0, d), expected, rtol=1e-6)


class SmallGapTest(parameterized.TestCase):
  @hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
  @hypothesis.given(
    strategies.floats(-2, 2, width=32), strategies.integers(0, 24)
  )
  def test_k3_keeps_its_digits_and_its_sign(self, mantissa, exponent):
    d = np.float32(mantissa * 2.0**-exponent)
    value, slope, _ = _one('k3', 0.0, d)
    self.assertGreaterEqual(value, 0)
    # A sum of positive terms, or of alternating ones that fall.
    exact = sum(float(d) ** k / math.factorial(k) for k in range(2, 40))
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(slope, -math.expm1(d), rtol=1e-6, atol=1e-37)

  def test_branches_meet_in_float64(self):
    with reference.x64():
      d = jnp.geomspace(1e-5, 1e-2, 200)
      values = jax.vmap(lambda d: _of_token('k3', 0.0, d)[0])(d)
      exact = [
        math.fsum(x**k / math.factorial(k) for k in range(2, 9)) for x in d
      ]
      np.testing.assert_allclose(values, exact, rtol=1e-12)


class WideGapTest(parameterized.TestCase):
  @parameterized.product(
    estimator=kl.LOSS_ESTIMATORS,
    gap=(9.5, 10.5, 100.0, 1e4, -9.5, -10.5, -100.0, -1e4),
  )
  def test_goes_on_along_the_tangent(self, estimator, gap):
    value, slope, metrics = _one(estimator, min(-gap, 0.0), min(gap, 0.0))
    expected, by_gap = _literal(estimator, gap)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, -by_gap, rtol=1e-6)
    self.assertEqual(metrics['kl/wide_gap_frac'], abs(gap) > _BOUND)

  # The largest finite number is what masked logits often hold.
  @parameterized.product(
    estimator=kl.LOSS_ESTIMATORS,
    case=(
      (0.0, -np.inf, -1),
      (0.0, -3.4e38, -1),
      (-3.4e38, 0.0, 1),
      (-2e4, 0.0, 1),
      (0.0, -2e4, -1),
    ),
  )
  def test_still_pulls_back_from_anywhere(self, estimator, case):
    logprob, ref_logprob, side = case
    value, slope, metrics = _one(estimator, logprob, ref_logprob)
    expected, by_gap = _literal(estimator, side * _REACH)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, -by_gap, rtol=1e-6)
    # Descent raises what lies below the anchor, and lowers what lies above.
    self.assertLess(side * slope, 0)
    self.assertEqual(metrics['kl/wide_gap_frac'], 1)

  @parameterized.parameters(*kl.LOSS_ESTIMATORS)
  def test_policy_that_rules_a_token_out_has_no_gradient_there(self, estimator):
    logprobs = jnp.array([[-np.inf, -np.inf, -1.0, -2.0]])
    ref_logprobs = jnp.array([[-1.0, -np.inf, -1.5, -2.1]])
    (value, metrics), (by_logprobs, _) = _kl(
      estimator, logprobs, ref_logprobs, _MASK[:1]
    )
    values, slopes = zip(
      *(_literal(estimator, d) for d in (_REACH, 0, -0.5, -0.1))
    )
    np.testing.assert_allclose(value, sum(values) / 4, rtol=1e-6)
    np.testing.assert_allclose(
      by_logprobs[0], [0, 0, -slopes[2] / 4, -slopes[3] / 4], rtol=1e-5
    )
    self.assertEqual(metrics['kl/wide_gap_frac'], 1 / 2)

  @parameterized.parameters(*kl.LOSS_ESTIMATORS)
  def test_slope_is_continuous_at_the_bound(self, estimator):
    for bound in (-_BOUND, _BOUND):
      slopes = [
        _one(estimator, 0.0, np.nextafter(np.float32(bound), toward))[1]
        for toward in (-np.inf, bound, np.inf)
      ]
      np.testing.assert_allclose(slopes, slopes[1], rtol=1e-5)

  def test_sums_of_wide_gaps_are_finite(self):
    mask = jnp.ones((2, 4096), bool)
    logprobs = jnp.full(mask.shape, -1e4)
    (value, _), (by_logprobs, _) = _kl(
      'k3', logprobs, jnp.zeros(mask.shape), mask, logprobs - 30
    )
    chex.assert_tree_all_finite((value, by_logprobs))
    self.assertTrue(np.isfinite(jnp.sum(by_logprobs**2)))

  def test_fault_on_a_token_is_not_hidden(self):
    for pair in ((np.nan, -1.0), (-1.0, np.nan)):
      self.assertTrue(np.isnan(_one('k3', *pair)[0]))


class MaskTest(parameterized.TestCase):
  @parameterized.parameters(*kl.LOSS_ESTIMATORS)
  def test_what_is_masked_changes_no_bit(self, estimator):
    filled = lambda *fills: (
      jnp.where(_MASK, x, fill) for x, fill in zip(_batch(), fills)
    )

    def run(*fills):
      logprobs, ref_logprobs, old_logprobs = filled(*fills)
      return (
        _kl(estimator, logprobs, ref_logprobs, _MASK, old_logprobs),
        _in_reward(logprobs, ref_logprobs, _MASK, estimator='k3'),
        _kl_metrics(logprobs, old_logprobs, _MASK),
      )

    clean = run(0.0, 0.0, 0.0)
    chex.assert_tree_all_finite(clean)
    np.testing.assert_array_equal(clean[0][1][0][~_MASK], 0)
    for fill in _GARBAGE:
      for fills in (
        (fill, 0.0, 0.0),
        (0.0, fill, 0.0),
        (0.0, 0.0, fill),
        (fill, -fill, fill),
      ):
        chex.assert_trees_all_equal(clean, run(*fills))


class ExpectationTest(parameterized.TestCase):
  """One token of five, all of them enumerated, in float64."""

  def setUp(self):
    super().setUp()
    self.enter_context(reference.x64())
    rng = np.random.default_rng(0)
    self.theta, ref, old = (jnp.asarray(rng.normal(size=5)) for _ in range(3))
    self.ref, self.old = jax.nn.log_softmax(ref), jax.nn.log_softmax(old)

  def _mean(self, estimator, theta, sampler, old=None):
    """Mean over the sampler of the estimates of each token."""
    tokens = [jax.nn.log_softmax(theta), self.ref]
    tokens += [] if old is None else [old]
    one = lambda *token: _of_token(estimator, *token)[0]
    return jax.lax.stop_gradient(jnp.exp(sampler)) @ jax.vmap(one)(*tokens)

  def _kl_from(self, theta):
    new = jax.nn.log_softmax(theta)
    return jnp.sum(jnp.exp(new) * (new - self.ref))

  def _kl_to(self, theta):
    new = jax.nn.log_softmax(theta)
    return jnp.sum(jnp.exp(self.ref) * (self.ref - new))

  def _distance(self, theta):
    new = jax.nn.log_softmax(theta)
    return jnp.sum(jnp.abs(jnp.exp(new) - jnp.exp(self.ref)))

  @parameterized.named_parameters(
    ('abs', 'abs', '_distance'),
    ('k2', 'k2', '_kl_from'),
    ('k3', 'k3', '_kl_to'),
    ('straight_through', 'k3+', '_kl_from'),
  )
  def test_gradient(self, estimator, descended):
    expected = jax.grad(getattr(self, descended))(self.theta)
    new = jax.nn.log_softmax(self.theta)
    slope = jax.grad(self._mean, 1)
    of = lambda *sampler: slope(estimator, self.theta, *sampler)
    np.testing.assert_allclose(of(new), expected, rtol=1e-9)
    # Of another policy's tokens it needs the weights.
    np.testing.assert_allclose(of(self.old, self.old), expected, rtol=1e-9)
    self.assertGreater(np.abs(of(self.old) - expected).max(), 0.01)

  @parameterized.parameters('k3', 'k3+')
  def test_value_of_k3_is_the_kl(self, estimator):
    expected, new = self._kl_from(self.theta), jax.nn.log_softmax(self.theta)
    for sampler in ((new,), (self.old, self.old)):
      np.testing.assert_allclose(
        self._mean(estimator, self.theta, *sampler), expected, rtol=1e-9
      )
    self.assertGreater(
      abs(self._mean(estimator, self.theta, self.old) - expected), 0.01
    )

  def test_k1_teaches_nothing_as_a_loss_and_the_kl_in_a_reward(self):
    new = jax.nn.log_softmax(self.theta)
    weights = jnp.exp(new)
    scores = jax.jacobian(jax.nn.log_softmax)(self.theta)
    np.testing.assert_allclose(weights @ scores, 0, atol=1e-12)
    k1 = kl.kl_in_reward(
      new[:, None], self.ref[:, None], np.ones((5, 1), bool), estimator='k1'
    )
    np.testing.assert_allclose(
      weights @ k1, self._kl_from(self.theta), rtol=1e-12
    )
    np.testing.assert_allclose(
      weights @ (k1[:, None] * scores),
      jax.grad(self._kl_from)(self.theta),
      rtol=1e-9,
    )

  def test_distance_to_the_sampler(self):
    new = jax.nn.log_softmax(self.theta)
    single = lambda x: x[None, None]
    each = jax.vmap(
      lambda new, old: kl.kl_metrics(
        single(new), single(old), np.ones((1, 1), bool)
      )
    )
    expected = jnp.sum(jnp.exp(self.old) * (self.old - new))
    for name, values in each(new, self.old).items():
      np.testing.assert_allclose(
        jnp.exp(self.old) @ values, expected, rtol=1e-12, err_msg=name
      )


class WeightTest(absltest.TestCase):
  def test_is_one_on_policy(self):
    logprobs, ref_logprobs, _ = _batch()
    for estimator in kl.LOSS_ESTIMATORS:
      chex.assert_trees_all_equal(
        _kl(estimator, logprobs, ref_logprobs, _MASK),
        _kl(estimator, logprobs, ref_logprobs, _MASK, logprobs),
      )

  def test_straight_through_is_the_gradient_through_the_ratio(self):
    # d/dx r (e^d - 1 - d) = r (e^d - 1 - d) + r (1 - e^d) = -r d.
    with reference.x64():
      logprobs, ref_logprobs, old_logprobs = _batch(np.float64)
      lengths = np.array([[4], [2], [1], [1]])

      def through(logprobs):
        d = ref_logprobs - logprobs
        terms = jnp.exp(logprobs - old_logprobs) * (jnp.exp(d) - 1 - d)
        return jnp.sum(jnp.where(_MASK, terms, 0) / lengths) / 3

      value, by_logprobs = jax.value_and_grad(through)(logprobs)
      ours = _kl('k3+', logprobs, ref_logprobs, _MASK, old_logprobs)
      np.testing.assert_allclose(ours[0][0], value, rtol=1e-12)
      np.testing.assert_allclose(ours[1][0], by_logprobs, rtol=1e-9, atol=1e-15)

  def test_is_bounded_and_no_gradient_flows_to_the_sampler(self):
    logprobs, ref_logprobs, old_logprobs = _batch()

    @jax.jit
    @jax.value_and_grad
    def penalty(old_logprobs, log_ratio_max):
      return kl.kl_penalty(
        logprobs,
        ref_logprobs,
        _MASK,
        estimator='k2',
        old_logprobs=old_logprobs,
        log_ratio_max=log_ratio_max,
      )[0]

    np.testing.assert_array_equal(penalty(old_logprobs, 20.0)[1], 0)
    plain = _kl('k2', logprobs, ref_logprobs, _MASK)[0][0]
    for far, weight in ((-100.0, np.exp(0.5)), (100.0, np.exp(-0.5))):
      np.testing.assert_allclose(
        penalty(logprobs + far, 0.5)[0], weight * plain, rtol=1e-6
      )


class RewardTest(parameterized.TestCase):
  # d = [-1/2, 1] in one row, 2 in the other.
  @parameterized.parameters(
    ('k1', [-1 / 2, -2]),
    ('abs', [3 / 2, 2]),
    ('k2', [5 / 8, 2]),
    ('k3', [np.exp(-0.5) + np.e - 5 / 2, np.exp(2) - 3]),
  )
  def test_by_hand(self, estimator, expected):
    logprobs = jnp.array([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]])
    ref_logprobs = jnp.array([[-1.5, -1.0], [-1.0, -7.0], [-5.0, -5.0]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    values = _in_reward(logprobs, ref_logprobs, mask, estimator=estimator)
    np.testing.assert_allclose(values, [*expected, 0], rtol=1e-6)

  @parameterized.parameters(*kl.REWARD_ESTIMATORS)
  def test_has_no_gradient_and_no_infinity(self, estimator):
    logprobs = jnp.array([[-np.inf, -np.inf, -1.0, -3e38]])
    ref_logprobs = jnp.array([[-1.0, -np.inf, -np.inf, 0.0]])
    of = lambda *arrays: jnp.sum(
      kl.kl_in_reward(*arrays, _MASK[:1], estimator=estimator)
    )
    value, slopes = jax.jit(jax.value_and_grad(of, (0, 1)))(
      logprobs, ref_logprobs
    )
    self.assertTrue(np.isfinite(value))
    for slope in slopes:
      np.testing.assert_array_equal(slope, 0)


class KLMetricsTest(absltest.TestCase):
  def test_by_hand(self):
    # log pi - log pi_old = [1/2, -1] in a row of two, 0 in a row of one.
    logprobs = jnp.array([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]])
    old_logprobs = jnp.array([[-1.5, -1.0], [-3.0, -7.0], [-5.0, -5.0]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    metrics = _kl_metrics(logprobs, old_logprobs, mask)
    np.testing.assert_allclose(metrics['kl_old/k1'], 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(
      metrics['kl_old/k3'], (np.exp(0.5) + np.exp(-1) - 3 / 2) / 4, rtol=1e-6
    )

  def test_is_zero_on_policy_and_on_nothing(self):
    logprobs, _, old_logprobs = _batch()
    for args in (
      (logprobs, logprobs, _MASK),
      (logprobs, old_logprobs, np.zeros_like(_MASK)),
    ):
      self.assertEqual(
        jax.device_get(_kl_metrics(*args)), {'kl_old/k1': 0, 'kl_old/k3': 0}
      )

  def test_has_no_gradient(self):
    logprobs, _, old_logprobs = _batch()
    of = lambda *arrays: sum(kl.kl_metrics(*arrays, _MASK).values())
    for slope in jax.grad(of, (0, 1))(logprobs, old_logprobs):
      np.testing.assert_array_equal(slope, 0)


class ContractTest(parameterized.TestCase):
  @parameterized.product(
    estimator=kl.LOSS_ESTIMATORS, dtype=(jnp.bfloat16, jnp.float16)
  )
  def test_narrow_inputs_are_computed_in_float32(self, estimator, dtype):
    narrow = [x.astype(dtype) for x in _batch()]
    logprobs, ref_logprobs, old = (x.astype(jnp.float32) for x in narrow)
    outcome = _kl(estimator, *narrow[:2], _MASK, narrow[2])
    expected = _kl(estimator, logprobs, ref_logprobs, _MASK, old)
    chex.assert_trees_all_equal(outcome[0], expected[0])
    chex.assert_trees_all_equal(outcome[1][0], expected[1][0].astype(dtype))

  @parameterized.parameters(*kl.LOSS_ESTIMATORS)
  def test_jit_equals_no_jit_and_vmap(self, estimator):
    logprobs, ref_logprobs, old_logprobs = _batch()
    plain = kl.kl_penalty(
      logprobs,
      ref_logprobs,
      _MASK,
      estimator=estimator,
      old_logprobs=old_logprobs,
    )
    for metric in jax.tree.leaves(plain):
      self.assertEqual((metric.shape, metric.dtype), ((), np.float32))
    together = jax.vmap(
      lambda x: _kl(estimator, x, ref_logprobs, _MASK, old_logprobs)[0]
    )(jnp.stack([logprobs, ref_logprobs]))
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[0], together), plain, rtol=1e-6
    )
    self.assertEqual(together[0][1], 0)

  def test_one_program_for_all_values(self):
    traces = []

    @jax.jit
    def run(*args):
      traces.append(None)
      return kl.kl_penalty(*args, _MASK, estimator='k3')

    logprobs, ref_logprobs, old_logprobs = _batch()
    run(logprobs, ref_logprobs)
    run(logprobs, old_logprobs)
    self.assertLen(traces, 1)

  def test_k1_as_a_loss_is_refused_with_what_to_take_instead(self):
    with self.assertRaisesRegex(
      ValueError, "estimator='k1'.*gradient is 0.*k2 or k3.*kl_in_reward"
    ):
      kl.kl_penalty(*_batch()[:2], _MASK, estimator='k1')

  @parameterized.parameters('k4', 'k1+', 'low_var_kl', '')
  def test_unknown_estimator(self, estimator):
    batch = _batch()[:2]
    with self.assertRaisesRegex(ValueError, 'must be abs, k2, k3 or k3+'):
      kl.kl_penalty(*batch, _MASK, estimator=estimator)
    for unknown in (estimator, 'k3+'):
      with self.assertRaisesRegex(ValueError, 'must be k1, abs, k2 or k3'):
        kl.kl_in_reward(*batch, _MASK, estimator=unknown)

  @parameterized.parameters(
    (lambda x, mask: (x[0], x, mask), 'rank'),
    (lambda x, mask: (x, x[:2], mask), 'shape'),
    (lambda x, mask: (x, x, mask[:, :1]), 'shape'),
    (lambda x, mask: (x, x, mask * 1.0), 'type'),
  )
  def test_raises_when_traced(self, make, message):
    arrays = make(_batch()[0], _MASK)
    for run in (
      functools.partial(kl.kl_penalty, estimator='k2'),
      functools.partial(kl.kl_in_reward, estimator='k1'),
      kl.kl_metrics,
    ):
      with self.assertRaisesRegex(AssertionError, message):
        jax.eval_shape(run, *arrays)


if __name__ == '__main__':
  absltest.main()
