"""The comparison of means against gradients computed one at a time."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax.config import traced
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses
from hmpo_jax.model import transformer
from hmpo_jax.training import mechanism
from hmpo_jax.training import policy
from hmpo_jax.training import update
from tests import small

_OPEN = (1 - 1e-6, np.inf)

_compare = jax.jit(mechanism.compare_means, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(static, params, batch, temperature):
  return policy.forward(
    static, params, batch.tokens, batch.valid, batch.mask, temperature
  ).logprobs


@functools.partial(jax.jit, static_argnums=0)
def _gradient(static, params, batch, temperature, slope):
  """The gradient of a loss with this slope in the log-probabilities."""
  run = lambda params: _logprobs(static, params, batch, temperature)
  return flatten_util.ravel_pytree(jax.vjp(run, params)[1](slope)[0])[0]


@functools.partial(
  jax.jit, static_argnames=('loss', 'clip', 'clip_center', 'aggregation')
)
def _slope(batch, logprobs, loss=losses.power_mean_loss, **options):

  def value(logprobs):
    return loss(
      logprobs, batch.old_logprobs, batch.advantages, batch.mask, **options
    )[0]

  return jax.grad(value)(logprobs)


def _params(static):
  """Random parameters, wider than fresh ones."""
  shapes = jax.eval_shape(
    functools.partial(transformer.init, policy.make_model(static)),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  draw = lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


def _cosine(first, second):
  return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


class CompareMeansTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._configure()
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 14, (32, 12), np.int32))
    mask = jnp.arange(6) < 1 + jnp.arange(32)[:, None] % 6
    valid = jnp.concatenate([jnp.ones((32, 6), bool), mask], axis=1)
    self.log_ratio = jnp.asarray(0.7 * rng.normal(size=mask.shape), jnp.float32)
    zeros = jnp.zeros(mask.shape)
    self.batch = base.Batch(
      is_on_policy=jnp.bool_(False),
      tokens=tokens,
      valid=valid,
      mask=mask,
      old_logprobs=zeros,
      ref_logprobs=zeros,
      group=jnp.arange(32) // 8,
      advantages=jnp.asarray(rng.normal(size=32), jnp.float32),
    )
    self.logprobs = _logprobs(
      self.static, self.params, self.batch, self.hparams.temperature
    )
    self.batch = self.batch._replace(
      old_logprobs=self.logprobs - self.log_ratio
    )

  def _configure(self, **overrides):
    config = small.config(
      **{
        'loss__clip_eps_low': 0.1,
        'loss__clip_eps_high': 0.2,
        'rollout__temperature': 0.8,
      }
      | overrides
    )
    self.static = traced.static(config)
    self.hparams = traced.hparams(config)
    self.params = _params(self.static)
    self.learned = update.Learned(
      self.params, (), update.start_controls(self.hparams)
    )

  def _gradient(self, **options):
    """The gradient of one loss as one float64 vector."""
    slope = _slope(self.batch, self.logprobs, **options)
    return np.float64(
      _gradient(
        self.static, self.params, self.batch, self.hparams.temperature, slope
      )
    )

  def _gradients(self, current, bounds):
    """Those of the four losses with one clip range."""
    widths = dict(zip(('clip_eps_low', 'clip_eps_high'), bounds))
    orders = {'p1': 1.0, 'p0': 0.0, 'pm1': -1.0}
    return {
      name: self._gradient(p=p, **widths) for name, p in orders.items()
    } | {'current': self._gradient(**current, **widths)}

  def _compare(self, **changes):
    values = _compare(
      self.static, self.learned, self.hparams, self.batch._replace(**changes)
    )
    self.assertCountEqual(values, mechanism.KEYS)
    return {name.split('/')[1]: float(x) for name, x in values.items()}

  def _assert_equals_direct(self, current):
    """All cosines and norms; `current` has the arguments of that loss."""
    values = self._compare()
    for kind, bounds in (('', (0.1, 0.2)), ('_unclipped', _OPEN)):
      grads = self._gradients(current, bounds)
      for first, second in itertools.combinations(grads, 2):
        expected = _cosine(grads[first], grads[second])
        for name in (
          f'cosine{kind}_{first}_{second}',
          f'cosine{kind}_{second}_{first}',
        ):
          if name in values:
            self.assertAlmostEqual(
              values.pop(name), expected, delta=2e-5, msg=name
            )
      for first in ('p1', 'pm1', 'current'):
        name = f'norm_ratio{kind}_{first}_p0'
        if name in values:
          self.assertAlmostEqual(
            values.pop(name),
            np.linalg.norm(grads[first]) / np.linalg.norm(grads['p0']),
            delta=2e-5,
            msg=name,
          )
    return {
      name
      for name in values
      if name.startswith(('cosine', 'norm_ratio'))
      and name.endswith(mechanism.LOSSES)
    }

  def test_keys_are_those_that_others_read(self):
    self.assertContainsSubset(
      (
        'mechanism/cosine',
        'mechanism/cosine_unclipped',
        'mechanism/norm_ratio',
        'mechanism/sigma',
        'mechanism/cosine_p1_p0',
        'mechanism/cosine_p1_pm1',
        'mechanism/cosine_current_p0',
        'mechanism/mask_disagreement_p0_pm1',
        'mechanism/norm_ratio_pm1_p0',
        'mechanism/gradient_variance_p0',
        'mechanism/sigma_sqrt_n',
        'mechanism/gradient_variance_unclipped_pm1',
        'mechanism/kurtosis',
        'mechanism/shift_over_spread',
      ),
      mechanism.KEYS,
    )
    self.assertLen(set(mechanism.KEYS), 36)

  def test_all_means_are_one_while_no_ratio_has_moved(self):
    values = self._compare(old_logprobs=self.logprobs)
    for name, value in values.items():
      if name.startswith(('cosine', 'norm_ratio')):
        self.assertAlmostEqual(value, 1, delta=1e-5)
      elif name.startswith('mask'):
        self.assertEqual(value, 0)
    self.assertLess(values['sigma'], 1e-5)

  def test_first_update_compares_ratios_of_one(self):
    # Whatever the old log-probabilities were recomputed to.
    values = self._compare(is_on_policy=jnp.bool_(True))
    self.assertEqual(values['sigma'], 0)
    self.assertAlmostEqual(values['cosine_p1_pm1'], 1, delta=1e-6)

  def test_geometric_and_harmonic_have_the_short_names(self):
    values = self._compare()
    free = self._gradients({'p': -1.0}, _OPEN)
    clipped = self._gradients({'p': -1.0}, (0.1, 0.2))
    expected = {
      'cosine': _cosine(clipped['p0'], clipped['pm1']),
      'cosine_unclipped': _cosine(free['p0'], free['pm1']),
      'norm_ratio': np.linalg.norm(free['pm1']) / np.linalg.norm(free['p0']),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(values[name], value, delta=1e-5)
    # Four different gradients: none can stand for another.
    self.assertLess(values['cosine'], values['cosine_unclipped'] - 0.05)
    self.assertLess(values['cosine_unclipped'], 0.98)
    self.assertGreater(abs(values['norm_ratio'] - 1), 0.05)

  def test_equals_gradients_computed_one_at_a_time(self):
    # The loss of the run has an order of its own for all that can have one.
    self._configure(loss__p=0.5, loss__p_clip=0.2, loss__p_grad=-0.4)
    left = self._assert_equals_direct(
      {
        'p': 0.5,
        'p_clip': 0.2,
        'p_grad': -0.4,
      }
    )
    self.assertEmpty(left)

  def test_dual_clip_of_the_run_counts_as_a_clip(self):
    self._configure(loss__dual_clip=1.05)
    self.batch = self.batch._replace(old_logprobs=self.batch.old_logprobs - 0.3)
    values = self._compare()
    widths = {'clip_eps_low': 0.1, 'clip_eps_high': 0.2}
    self.assertAlmostEqual(
      values['cosine_current_pm1'],
      _cosine(
        self._gradient(p=-1.0, dual_clip=1.05, **widths),
        self._gradient(p=-1.0, **widths),
      ),
      delta=2e-5,
    )
    self.assertLess(values['cosine_current_pm1'], 0.99)
    self.assertAlmostEqual(
      values['cosine_unclipped_current_pm1'], 1, delta=1e-6
    )

  def test_center_of_the_run_moves_its_mask_alone(self):
    self._configure(
      loss__clip_center='geometric', loss__aggregation='token-mean'
    )
    current = {'clip_center': 'geometric', 'aggregation': 'token-mean'}
    self._assert_equals_direct({'p': -1.0} | current)
    # Lengths differ: what a row adds isn't the gradient of its mean alone.
    self._assert_variances({'p': -1.0} | current)
    values = self._compare()
    # The mask of GSPO, the weights of the harmonic mean.
    self.assertEqual(values['mask_disagreement_current_p0'], 0)
    self.assertGreater(values['mask_disagreement_current_pm1'], 0)

  def test_loss_of_another_family(self):
    self._configure(loss__name='grpo', loss__p=-1.0)
    self._assert_equals_direct({'loss': losses.grpo_loss})
    values = self._compare()
    x = np.where(self.batch.mask, self.log_ratio, 0)
    grpo = (self.batch.advantages[:, None] > 0) & (x > np.log(1.2))
    grpo |= (self.batch.advantages[:, None] < 0) & (x < np.log(0.9))
    n = np.sum(self.batch.mask, axis=1)
    mean = np.sum(x, axis=1) / n
    gspo = (self.batch.advantages > 0) & (mean > np.log(1.2))
    gspo |= (self.batch.advantages < 0) & (mean < np.log(0.9))
    differ = (grpo != gspo[:, None]) & self.batch.mask
    self.assertAlmostEqual(
      values['mask_disagreement_current_p0'],
      np.mean(np.sum(differ, axis=1) / n),
      delta=1e-6,
    )

  def test_orders_of_the_rows_are_those_in_use_without_a_clip_too(self):
    self._configure(exponent__kind='matched', loss__clip='token_log')
    widths = self.learned.controls.widths
    clipped = losses.clip_tokens(
      'token_log', self.log_ratio, self.batch.advantages, *widths
    )
    orders = exponents.of_rows(
      self.hparams.exponent,
      self.learned.controls.exponent,
      clipped.values,
      self.batch.mask,
      clipped.stopped,
    )
    self.assertGreater(np.std(orders), 0.1)
    values = self._compare()
    for kind, bounds in (('', (0.1, 0.2)), ('_unclipped', (np.inf, np.inf))):
      current = self._gradient(
        p=orders,
        clip='token_log',
        clip_eps_low=bounds[0],
        clip_eps_high=bounds[1],
      )
      low, high = bounds if kind == '' else _OPEN
      geometric = self._gradient(p=0.0, clip_eps_low=low, clip_eps_high=high)
      self.assertAlmostEqual(
        values[f'cosine{kind}_current_p0'],
        _cosine(current, geometric),
        delta=2e-5,
      )

  def test_disagreement_of_the_masks_by_hand(self):
    # Two tokens of x = 0.7 and -0.7: M_1 = cosh 0.7 = 1.26, M_0 = 1 and M_-1 =
    # 0.80. Of 32 rows 8 have A > 0, where 1.2 stops p = 1 alone, and 4 A < 0,
    # where 0.9 stops p = -1 alone.
    self._configure(loss__p=0.0)
    log_ratio = jnp.zeros((32, 6)).at[:, 0].set(0.7).at[:, 1].set(-0.7)
    values = self._compare(
      mask=jnp.broadcast_to(jnp.arange(6) < 2, (32, 6)),
      old_logprobs=self._whole_logprobs() - log_ratio,
      advantages=jnp.zeros(32).at[:8].set(1).at[8:12].set(-1),
    )
    expected = {
      'p1_p0': 8,
      'p0_pm1': 4,
      'p1_pm1': 12,
      'current_p1': 8,
      'current_p0': 0,
      'current_pm1': 4,
    }
    for name, count in expected.items():
      self.assertEqual(values[f'mask_disagreement_{name}'], count / 32)

  def _whole_logprobs(self):
    """Of all places, also those beyond the end of a response."""
    return _logprobs(
      self.static,
      self.params,
      self.batch._replace(mask=jnp.ones((32, 6), bool)),
      self.hparams.temperature,
    )

  def test_sigma_is_the_root_of_the_mean_variance_within_rows(self):
    variances = [
      np.var(row[mask]) for row, mask in zip(self.log_ratio, self.batch.mask)
    ]
    self.assertAlmostEqual(
      self._compare()['sigma'], np.mean(variances) ** 0.5, delta=1e-5
    )

  def test_gradient_variance_is_that_of_the_rows(self):
    self._assert_variances({'p': -1.0})

  def test_rows_without_a_token_have_no_gradient_to_vary(self):
    self.batch = self.batch._replace(
      mask=self.batch.mask & (jnp.arange(32) % 4 > 0)[:, None]
    )
    self._assert_variances({'p': -1.0})

  def _assert_variances(self, current):
    """All traces of a covariance against gradients of one row at a time."""
    values = self._compare()
    for kind, bounds in (('', (0.1, 0.2)), ('_unclipped', _OPEN)):
      widths = dict(zip(('clip_eps_low', 'clip_eps_high'), bounds))
      for name, options in (
        ('p1', {'p': 1.0}),
        ('pm1', {'p': -1.0}),
        ('current', current),
      ):
        slope = _slope(self.batch, self.logprobs, **options, **widths)
        rows = np.flatnonzero(np.any(self.batch.mask, axis=1))
        grads = np.stack(
          [
            np.float64(
              _gradient(
                self.static,
                self.params,
                self.batch,
                self.hparams.temperature,
                jnp.zeros_like(slope).at[row].set(slope[row]),
              )
            )
            for row in rows
          ]
        )
        expected = np.sum(np.var(len(rows) * grads, axis=0, ddof=1))
        np.testing.assert_allclose(
          values[f'gradient_variance{kind}_{name}'], expected, rtol=1e-4
        )

  def test_one_row_has_no_variance(self):
    mask = self.batch.mask & (jnp.arange(32) == 3)[:, None]
    values = self._compare(mask=mask)
    self.assertGreater(values['norm_ratio'], 0)
    for name, value in values.items():
      if name.startswith(('gradient_variance', 'shift')):
        self.assertEqual(value, 0, name)

  def test_gradients_of_zero_give_zero(self):
    values = self._compare(advantages=jnp.zeros_like(self.batch.advantages))
    for name in ('sigma', 'sigma_sqrt_n', 'shift_over_spread'):
      self.assertGreater(values.pop(name), 0)
    self.assertNotEqual(values.pop('kurtosis'), 0)
    self.assertEqual(set(values.values()), {0})

  def test_everything_clipped_leaves_the_unclipped_comparison(self):
    # A < 0 and log-ratios around -4 stop every row at the low side.
    values = self._compare(
      advantages=-jnp.ones_like(self.batch.advantages),
      old_logprobs=self.batch.old_logprobs + 4,
    )
    self.assertEqual(values['cosine'], 0)
    self.assertGreater(values['cosine_unclipped'], 0.1)

  def test_batch_without_a_token_gives_zero(self):
    values = self._compare(mask=jnp.zeros_like(self.batch.mask))
    self.assertEqual(set(values.values()), {0})


if __name__ == '__main__':
  absltest.main()
