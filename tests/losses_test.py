"""Losses: closed forms, literal loops, clips, masks and hostile numbers."""

import functools
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import losses
from tests import reference

_ORDERS = (-50., -1., -1e-3, 0., 1e-3, 1., 50.)
_CLIP = {'clip_eps_low': 0.2, 'clip_eps_high': 0.3}
_NO_CLIP = {'clip_eps_low': 1 - 2.**-20, 'clip_eps_high': np.inf}
_GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
_LOSSES = (
    *((name, losses.power_mean_loss, {'p': p}) for name, p in (
        ('arithmetic', 1.), ('gspo', 0.), ('hmpo', -1.), ('steep', 50.))),
    ('grpo', losses.grpo_loss, {}))  # yapf: disable
_ESTIMATORS = ('k1', 'k2', 'k3')


class _Batch(NamedTuple):
  logprobs: jax.Array
  old_logprobs: jax.Array
  advantages: jax.Array
  mask: jax.Array


def _batch(sigma=0.3, dtype=np.float32):
  """Rows of 6, 4, 1, 3 and 0 tokens whose log-ratios scatter by sigma."""
  rng = np.random.default_rng(1)
  old_logprobs = rng.uniform(-3, -1, size=(5, 6))
  logprobs = old_logprobs + sigma * rng.normal(size=(5, 6))
  mask = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0],
                   [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
  advantages = np.array([1.5, -0.7, 0.4, -1.2, 0.9])
  return _Batch(
      jnp.asarray(logprobs, dtype), jnp.asarray(old_logprobs, dtype),
      jnp.asarray(advantages, dtype), jnp.asarray(mask))


def _of_log_ratios(rows, advantages):
  """Rows whose log-ratios are given to the last bit, in a batch of one shape.

  What is padded is masked; one shape for all tests spares compilations.
  """
  num_rows, length = np.shape(rows)
  log_ratios, mask = np.zeros((5, 6), np.float32), np.zeros((5, 6), bool)
  log_ratios[:num_rows, :length] = rows
  mask[:num_rows, :length] = True
  return _Batch(
      jnp.asarray(log_ratios), jnp.zeros((5, 6)),
      jnp.zeros(5).at[:num_rows].set(jnp.asarray(advantages)),
      jnp.asarray(mask))


class _Result(NamedTuple):
  """What a loss returns, and its gradient in each of its arguments."""
  loss: jax.Array
  metrics: dict[str, jax.Array]
  by_logprobs: jax.Array
  by_old_logprobs: jax.Array
  by_advantages: jax.Array
  by_settings: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def _run(loss, batch, settings):
  *arrays, mask = batch
  of = lambda new, old, advantages, settings: loss(new, old, advantages, mask,
                                                   **settings)
  value, gradients = jax.value_and_grad(
      of, (0, 1, 2, 3), has_aux=True)(*arrays, settings)
  return _Result(*value, *gradients)


def _any_loss(loss, extra, batch, clip=None, log_ratio_max=20.):
  settings = {'log_ratio_max': log_ratio_max, **(clip or _CLIP), **extra}
  return _run(loss, batch, settings)


def _power_mean(batch, p, clip=None, log_ratio_max=20.):
  return _any_loss(losses.power_mean_loss, {'p': p}, batch, clip, log_ratio_max)


def _grpo(batch, clip=None):
  return _any_loss(losses.grpo_loss, {}, batch, clip)


@functools.partial(jax.jit, static_argnums=0)
def _kl(estimator, logprobs, ref_logprobs, mask):
  """Penalty and its gradients by logprobs and by ref_logprobs."""
  of = functools.partial(losses.kl_penalty, mask=mask, estimator=estimator)
  return jax.value_and_grad(of, (0, 1))(logprobs, ref_logprobs)


class OnPolicyTest(parameterized.TestCase):

  def test_ratios_are_one_and_gradients_agree_to_the_bit(self):
    batch = _batch(sigma=0)
    gradients = []
    for p in _ORDERS:
      result = _power_mean(batch, p)
      np.testing.assert_allclose(
          result.loss, -np.mean(batch.advantages[:4]), rtol=1e-6)
      for name in ('mean', 'min', 'max'):
        self.assertEqual(result.metrics[f'ratio/{name}'], 1)
      self.assertEqual(result.by_settings['p'], 0)
      gradients.append(result.by_logprobs)
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, gradients[0])
    length = np.array([6, 4, 1, 3, 1])
    expected = -(batch.advantages / length / 4)[:, None] * batch.mask
    np.testing.assert_allclose(gradients[0], expected, rtol=3e-7)
    np.testing.assert_allclose(_grpo(batch).by_logprobs, expected, rtol=3e-7)


class ValueTest(parameterized.TestCase):

  # r = [1, 4]: A = 5/2, G = 2, H = 8/5, and a clip at 13/10.
  @parameterized.parameters((1., 5 / 2), (0., 2.), (-1., 8 / 5))
  def test_by_hand(self, p, mean):
    batch = _of_log_ratios([[0, np.log(4)]], [1.])
    np.testing.assert_allclose(_power_mean(batch, p).loss, -1.3, rtol=3e-7)
    opposed = batch._replace(advantages=-batch.advantages)
    np.testing.assert_allclose(_power_mean(opposed, p).loss, mean, rtol=3e-7)

  def test_grpo_by_hand(self):
    # min(1, 13/10 or 1) + min(4, 13/10), over 2 tokens.
    batch = _of_log_ratios([[0, np.log(4)]], [1.])
    np.testing.assert_allclose(_grpo(batch).loss, -(1 + 1.3) / 2, rtol=3e-7)

  @parameterized.product(p=(-3., -1., 0., .5, 1., 2.), clip=(_CLIP, _NO_CLIP))
  def test_literal_loop(self, p, clip):
    expected = reference.power_mean_loss(*_batch(), p, *clip.values())
    np.testing.assert_allclose(
        _power_mean(_batch(), p, clip).loss, expected, rtol=1e-6)

  @parameterized.parameters(_CLIP, _NO_CLIP)
  def test_order_zero_is_gspo(self, **clip):
    expected = reference.gspo_loss(*_batch(), *clip.values())
    np.testing.assert_allclose(
        _power_mean(_batch(), 0., clip).loss, expected, rtol=1e-6)

  @parameterized.parameters(_CLIP, _NO_CLIP)
  def test_grpo_literal_loop(self, **clip):
    expected = reference.grpo_loss(*_batch(), *clip.values())
    np.testing.assert_allclose(_grpo(_batch(), clip).loss, expected, rtol=1e-6)

  def test_order_one_is_grpo_only_without_a_clip(self):
    for clip, equal in ((_NO_CLIP, True), (_CLIP, False)):
      ours = _power_mean(_batch(), 1., clip).loss
      self.assertEqual(abs(ours - _grpo(_batch(), clip).loss) < 1e-6, equal)

  def test_each_row_has_its_order(self):
    batch = _batch()
    orders = [1., -1., 0., 2., 0.]
    together = _power_mean(batch, jnp.array(orders))
    for i, p in enumerate(orders):
      np.testing.assert_array_equal(together.by_logprobs[i],
                                    _power_mean(batch, p).by_logprobs[i])


class GradientTest(parameterized.TestCase):

  @parameterized.product(p=_ORDERS, clip=(_CLIP, _NO_CLIP))
  def test_closed_form(self, p, clip):
    # A_i M_p,i w_t / B where not clipped, else exactly 0.
    batch = _batch()
    by_logprobs = _power_mean(batch, p, clip).by_logprobs
    log_ratios = np.float32(batch.logprobs - batch.old_logprobs)
    for i, mask in enumerate(np.asarray(batch.mask[:4])):
      log_mean, weights, _ = reference.log_power_mean(log_ratios[i][mask], p)
      ratio, advantage = np.exp(log_mean), float(batch.advantages[i])
      stopped = (
          ratio > 1 + clip['clip_eps_high'] if advantage > 0 else ratio < 1 -
          clip['clip_eps_low'])
      expected = np.zeros(6)
      expected[mask] = 0 if stopped else -advantage * ratio * weights / 4
      np.testing.assert_allclose(by_logprobs[i], expected, rtol=2e-6, atol=1e-9)
      np.testing.assert_array_equal(by_logprobs[i] == 0, expected == 0)
    np.testing.assert_array_equal(by_logprobs[4], 0)

  @parameterized.parameters(
      *((losses.power_mean_loss, {
          'p': p
      }) for p in (-2., -1., 0., 1e-3, 1.)), (losses.grpo_loss, {}))
  def test_finite_differences(self, loss, extra):
    with reference.x64():
      batch = _batch(dtype=np.float64)
      result = _any_loss(loss, extra, batch)

      def value(step, **change):
        moved = batch._replace(logprobs=batch.logprobs + step)
        return _any_loss(loss, extra | change, moved).loss

      for index in np.ndindex(batch.mask.shape):
        step = np.zeros(batch.mask.shape)
        step[index] = 1e-5
        difference = (value(step) - value(-step)) / 2e-5
        np.testing.assert_allclose(
            result.by_logprobs[index], difference, atol=1e-9)
      for p in extra.values():
        difference = (value(0., p=p + 1e-5) - value(0., p=p - 1e-5)) / 2e-5
        np.testing.assert_allclose(
            result.by_settings['p'], difference, atol=1e-9)
        self.assertNotEqual(difference, 0)

  @parameterized.named_parameters(*_LOSSES)
  def test_flows_through_logprobs_and_the_order_only(self, loss, extra):
    result = _any_loss(loss, extra, _batch())
    self.assertGreater(np.abs(result.by_logprobs).max(), 0)
    np.testing.assert_array_equal(result.by_old_logprobs, 0)
    np.testing.assert_array_equal(result.by_advantages, 0)
    for name, gradient in result.by_settings.items():
      self.assertEqual(gradient != 0, name == 'p', name)

  @parameterized.product(sign=(-1., 1.), p=_ORDERS)
  def test_tie_at_one_has_the_whole_gradient(self, sign, p):
    batch = _of_log_ratios([[0.]], [sign])
    for run in (lambda b: _power_mean(b, p), _grpo):
      result = run(batch)
      self.assertEqual((result.loss, result.by_logprobs[0, 0]), (-sign, -sign))


class ClipTest(parameterized.TestCase):

  def test_fractions_are_monotone_in_the_order(self):
    batch = _batch(sigma=0.6)
    metrics = [_power_mean(batch, p).metrics for p in _ORDERS]
    low, high = (
        [m[f'clip/{side}_frac'] for m in metrics] for side in ('low', 'high'))
    self.assertEqual(low, sorted(low, reverse=True))
    self.assertEqual(high, sorted(high))
    self.assertGreater(low[0], low[-1])
    self.assertLess(high[0], high[-1])

  # On a grid, means of unlike tokens differ between orders by far more than
  # they round, and equal tokens are their mean exactly.
  @hypothesis.settings(deadline=None, derandomize=True, max_examples=50)
  @hypothesis.given(
      strategies.lists(
          strategies.lists(strategies.integers(-6, 6), min_size=4, max_size=4),
          min_size=4,
          max_size=4),
      strategies.lists(
          strategies.sampled_from([-1., 1.]), min_size=4, max_size=4))
  def test_fractions_are_monotone_in_the_order_for(self, eighths, advantages):
    batch = _of_log_ratios(np.array(eighths) / 8, advantages)
    metrics = [
        _power_mean(batch, p).metrics for p in (-50., -4., -1., 0., 1., 4., 50.)
    ]
    low, high = ([float(m[f'clip/{side}_frac'])
                  for m in metrics]
                 for side in ('low', 'high'))
    self.assertEqual(low, sorted(low, reverse=True))
    self.assertEqual(high, sorted(high))

  @parameterized.product(run=('power_mean', 'grpo'), side=(-1., 1.))
  def test_boundary_is_inside(self, run, side):
    # A < 0 stops at the low bound, A > 0 at the high one.
    eps = _CLIP['clip_eps_low' if side < 0 else 'clip_eps_high']
    bound = np.float32(jnp.log1p(side * jnp.float32(eps)))
    beyond = np.nextafter(bound, np.float32(side * np.inf))
    run = _grpo if run == 'grpo' else lambda batch: _power_mean(batch, -1.)
    for log_ratio, slope in ((bound, -side * np.exp(bound)), (beyond, 0)):
      result = run(_of_log_ratios([[log_ratio]], [side]))
      np.testing.assert_allclose(
          result.loss, -side * (1 + side * eps), rtol=3e-7)
      np.testing.assert_allclose(result.by_logprobs[0, 0], slope, rtol=3e-7)

  def test_stops_one_side_only(self):
    # Only a ratio that the advantage has already moved is stopped.
    for log_ratio in (-2., 2.):
      for sign in (-1., 1.):
        batch = _of_log_ratios([[log_ratio]], [sign])
        for run in (lambda b: _power_mean(b, 1.), _grpo):
          result = run(batch)
          stopped = log_ratio * sign > 0
          high, low = (
              result.metrics[f'clip/{side}_frac'] for side in ('high', 'low'))
          self.assertEqual(result.by_logprobs[0, 0] == 0, stopped)
          self.assertEqual(high, stopped and sign > 0)
          self.assertEqual(low, stopped and sign < 0)

  def test_compares_logs(self):
    # log(1 - 3e-4) = -3.00045e-4. The ratios of these two round to one number
    # in float32, whose spacing below 1 is 6e-8.
    log_ratios = np.float32([[-3.0002e-4], [-3.0007e-4]])
    self.assertEqual(*np.exp(log_ratios))
    clip = {'clip_eps_low': 3e-4, 'clip_eps_high': 4e-4}
    for run in (lambda b: _power_mean(b, 0., clip), lambda b: _grpo(b, clip)):
      result = run(_of_log_ratios(log_ratios, [-1., -1.]))
      np.testing.assert_array_equal(result.by_logprobs[:2, 0] != 0,
                                    [True, False])

  def test_one_range_stops_the_harmonic_mean_below_first(self):
    # r = [3/5, 1, 6/5] has A = 14/15, G = .896, H = 6/7; a clip at .88.
    rows = np.log([[.6, 1, 1.2]])
    clip = {'clip_eps_low': .12, 'clip_eps_high': .12}
    for p, stopped in ((1., 0), (0., 0), (-1., 1)):
      result = _power_mean(_of_log_ratios(rows, [-1.]), p, clip)
      self.assertEqual(result.metrics['clip/low_frac'], stopped)

  @parameterized.named_parameters(*_LOSSES)
  def test_batch_that_is_clipped_throughout(self, loss, extra):
    batch = _of_log_ratios([[2., 3.], [-2., -3.]], [1., -1.])
    result = _any_loss(loss, extra, batch)
    np.testing.assert_allclose(result.loss, (-1.3 + .8) / 2, rtol=1e-6)
    _assert_no_gradient(result)

  @parameterized.named_parameters(*_LOSSES)
  def test_no_advantage(self, loss, extra):
    batch = _batch()._replace(advantages=jnp.zeros(5))
    result = _any_loss(loss, extra, batch)
    self.assertEqual(result.loss, 0)
    _assert_no_gradient(result)


class MaskTest(parameterized.TestCase):

  @parameterized.named_parameters(*_LOSSES)
  def test_gradient_is_on_the_mask_and_nowhere_else(self, loss, extra):
    batch = _batch()
    result = _any_loss(loss, extra, batch, _NO_CLIP)
    np.testing.assert_array_equal(result.by_logprobs != 0, batch.mask)

  @parameterized.named_parameters(*_LOSSES)
  def test_rows_and_columns_without_tokens_count_nowhere(self, loss, extra):
    pad = lambda x: jnp.pad(x, ((0, 2), (1, 3))[:x.ndim])
    result = _any_loss(loss, extra, jax.tree.map(pad, _batch()))
    rows, columns = np.arange(5), np.arange(1, 7)
    inner = result._replace(
        by_logprobs=result.by_logprobs[np.ix_(rows, columns)],
        by_old_logprobs=result.by_old_logprobs[np.ix_(rows, columns)],
        by_advantages=result.by_advantages[rows])
    chex.assert_trees_all_close(
        inner, _any_loss(loss, extra, _batch()), rtol=1e-5, atol=1e-7)
    self.assertEqual(
        np.sum(result.by_logprobs != 0), np.sum(inner.by_logprobs != 0))

  @parameterized.named_parameters(*_LOSSES)
  def test_what_is_masked_changes_no_bit(self, loss, extra):
    batch = _batch()
    clean = _any_loss(loss, extra, _filled(batch, 0., 0., 0.))
    chex.assert_tree_all_finite(clean)
    for fill in _GARBAGE:
      for fills in ((fill, 0., 0.), (0., fill, 0.), (0., 0., fill),
                    (fill, -fill, fill)):
        dirty = _any_loss(loss, extra, _filled(batch, *fills))
        chex.assert_trees_all_equal(clean, dirty)

  @parameterized.parameters(*_ESTIMATORS)
  def test_what_is_masked_changes_no_bit_of_the_kl(self, estimator):
    batch = _batch()
    clean = _kl(estimator, *_filled(batch, 0., 0., 0.)[:2], batch.mask)
    chex.assert_tree_all_finite(clean)
    np.testing.assert_array_equal(clean[1][0][~batch.mask], 0)
    for fill in _GARBAGE:
      for fills in ((fill, 0.), (0., fill), (fill, fill)):
        dirty = _kl(estimator, *_filled(batch, *fills, 0.)[:2], batch.mask)
        chex.assert_trees_all_equal(clean, dirty)

  @parameterized.named_parameters(*_LOSSES)
  def test_nothing_to_train_on(self, loss, extra):
    masked = _batch()._replace(mask=jnp.zeros((5, 6), bool))
    no_rows = jax.tree.map(lambda x: x[:0], _batch())
    no_tokens = jax.tree.map(lambda x: x[:, :0] if x.ndim == 2 else x, _batch())
    for batch in (masked, no_rows, no_tokens):
      result = _any_loss(loss, extra, batch)
      self.assertEqual(result.loss, 0)
      chex.assert_tree_all_finite(result)
      _assert_no_gradient(result)


def _assert_no_gradient(result):
  assert result.metrics['loss/live_frac'] == 0
  for gradient in jax.tree.leaves(result[2:]):
    np.testing.assert_array_equal(gradient, 0)


def _filled(batch, logprobs, old_logprobs, advantages):
  """The batch with one value off the mask, and one in rows without tokens."""
  return batch._replace(
      logprobs=jnp.where(batch.mask, batch.logprobs, logprobs),
      old_logprobs=jnp.where(batch.mask, batch.old_logprobs, old_logprobs),
      advantages=jnp.where(
          jnp.any(batch.mask, axis=1), batch.advantages, advantages))


# Log-probabilities of valid tokens, before and after, and how many of them are
# clamped at 20 nats.
_HOSTILE = {
    'opposite_80': ([80, -80], [0, 0], 2),
    'opposite_1e4': ([1e4, -1e4], [0, 0], 2),
    'up_1e4': ([1e4], [0], 1),
    'down_1e4': ([-1e4, 0], [0, 0], 1),
    'spike_up': ([80, 0, 0, 0, 0, 0], 6 * [0], 1),
    'spike_down': ([0, 0, 0, 0, 0, -80], 6 * [0], 1),
    'at_the_bound': ([20, -20], [0, 0], 0),
    'gone': ([-np.inf, -1, -2], [-1, -1, -2], 1),
    'never_was': ([-1, -1, -2], [-np.inf, -1, -2], 1),
    'ruled_out_twice': ([-np.inf, -1], [-np.inf, -1.1], 1),
    'nothing_left': ([-np.inf, -np.inf], [-1, -1], 2),
}


class HostileTest(parameterized.TestCase):

  @parameterized.product(case=_LOSSES, name=tuple(_HOSTILE))
  def test_stays_finite(self, case, name):
    _, loss, extra = case
    new, old, num_clamped = _HOSTILE[name]
    batch = _of_log_ratios([new, new], [1., -1.])
    batch = batch._replace(
        old_logprobs=batch.old_logprobs.at[:2, :len(old)].set(
            jnp.array(old, jnp.float32)))
    for clip in (_CLIP, _NO_CLIP):
      result = _any_loss(loss, extra, batch, clip)
      chex.assert_tree_all_finite(result)
      np.testing.assert_allclose(
          result.metrics['ratio/clamped_frac'],
          num_clamped / len(new),
          rtol=1e-6)
      within = np.abs(batch.logprobs - batch.old_logprobs) <= 20
      np.testing.assert_array_equal(result.by_logprobs[~within], 0)

  @parameterized.product(log_ratio_max=(20., np.inf), p=(1., 50.))
  def test_surrogate_of_an_exploded_row_is_the_clip_bound(
      self, log_ratio_max, p):
    batch = _of_log_ratios([[1e4, -1e4]], [1.])
    result = _power_mean(batch, p, log_ratio_max=log_ratio_max)
    np.testing.assert_allclose(result.loss, -1.3, rtol=3e-7)
    _assert_no_gradient(result)

  def test_negative_advantage_is_bounded_by_the_clamp(self):
    batch = _of_log_ratios([[1e4]], [-1.])
    for run in (lambda b: _power_mean(b, 1.), _grpo):
      np.testing.assert_allclose(run(batch).loss, np.exp(20), rtol=3e-6)

  def test_clamp_can_be_off(self):
    # 2 / (e^-30 + e^30), and the same of 20.
    batch = _of_log_ratios([[30., -30.]], [1.])
    for log_ratio_max, reach in ((np.inf, 30.), (20., 20.)):
      result = _power_mean(batch, -1., log_ratio_max=log_ratio_max)
      np.testing.assert_allclose(result.loss, -1 / np.cosh(reach), rtol=1e-5)

  @parameterized.parameters(1., -1.)
  def test_harmonic_mean_and_one_spike(self, sign):
    # n / sum 1/r: blind to a spike up, ruled by a spike down.
    batch = _of_log_ratios([[5 * sign, 0, 0, 0, 0, 0]], [1.])
    gradient = _power_mean(batch, -1., _NO_CLIP).by_logprobs[0]
    expected = np.exp(-5 * sign) / (np.exp(-5 * sign) + 5)
    np.testing.assert_allclose(
        gradient[0] / np.sum(gradient), expected, rtol=1e-6)

  @parameterized.named_parameters(*_LOSSES)
  def test_narrow_inputs_are_computed_in_float32(self, loss, extra):
    # e^12 overflows in float16; and one token of 14 is clamped.
    batch = _batch()
    logprobs = batch.logprobs.at[1, 2].set(10.).at[0, 1].set(-6e4)
    batch = batch._replace(logprobs=logprobs)
    narrow = batch._replace(
        **{
            name: getattr(batch, name).astype(jnp.float16)
            for name in ('logprobs', 'old_logprobs')
        })
    widened = narrow._replace(
        logprobs=narrow.logprobs.astype(jnp.float32),
        old_logprobs=narrow.old_logprobs.astype(jnp.float32))
    result = _any_loss(loss, extra, narrow)
    expected = _any_loss(loss, extra, widened)
    chex.assert_tree_all_finite(result)
    chex.assert_trees_all_equal(result[:2], expected[:2])
    np.testing.assert_allclose(result.metrics['ratio/clamped_frac'], 1 / 14)
    self.assertEqual(result.by_logprobs.dtype, jnp.float16)
    chex.assert_trees_all_equal(result.by_logprobs,
                                expected.by_logprobs.astype(jnp.float16))

  def test_long_rows_in_bfloat16_keep_the_clip(self):
    # The quantum of bfloat16 at 1/2 is 13 times the clip at 3e-4.
    old_logprobs = jnp.full((2, 4096), -0.5, jnp.bfloat16)
    logprobs = old_logprobs.at[0, :1024].set(-0.50390625)
    batch = _Batch(logprobs, old_logprobs, jnp.full(2, -1.),
                   jnp.ones((2, 4096), bool))
    clip = {'clip_eps_low': 3e-4, 'clip_eps_high': 4e-4}
    result = _power_mean(batch, 0., clip)
    self.assertEqual(result.metrics['clip/low_frac'], 0.5)
    np.testing.assert_allclose(result.loss, (1 - 3e-4 + 1) / 2, rtol=1e-7)


class MetricsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    # Ratios 1 and 4 with A = 1, twice 1/2 with A = -2, and no tokens.
    self.batch = _of_log_ratios([[0, np.log(4)], 2 * [np.log(.5)], [7., 7.]],
                                [1., -2., 3.])
    mask = self.batch.mask.at[2].set(False)
    self.batch = self.batch._replace(mask=mask)

  def _assert_metrics(self, metrics, expected):
    for name, value in expected.items():
      np.testing.assert_allclose(
          metrics[name], value, rtol=1e-6, atol=1e-7, err_msg=name)

  def test_of_tokens(self):
    # Of [5/2, 8/5]: (a - h) / (a + h) at each of 6 iterates, u^(2^k) in cosh.
    gap = np.log(25 / 16) / 2
    distances = []
    for _ in range(6):
      distances.append(np.tanh(gap))
      gap = np.log(np.cosh(gap))
    expected = {
        'log_ratio/mean': 0,
        'log_ratio/abs_max': np.log(4),
        'log_ratio/row_variance': np.log(2)**2 / 2,
        'agm/arithmetic': (5 / 2 + 1 / 2) / 2,
        'agm/geometric': (2 + 1 / 2) / 2,
        'agm/harmonic': (8 / 5 + 1 / 2) / 2,
        'agm/gap': (5 / 2 - 8 / 5) / 2,
        'agm/convergence_rate': 1 - np.mean(distances) / 2,
        'ratio/clamped_frac': 0,
    }
    for result in (_power_mean(self.batch, 0.), _grpo(self.batch)):
      self._assert_metrics(result.metrics, expected)

  def test_of_power_mean(self):
    self._assert_metrics(
        _power_mean(self.batch, 0.).metrics,
        {
            'ratio/mean': (2 + 1 / 2) / 2,
            'ratio/min': 1 / 2,
            'ratio/max': 2,
            'clip/low_frac': 1 / 2,
            'clip/high_frac': 1 / 2,
            'loss/live_frac': 0,
            # Of A M = 2 and -1.
            'advantage/effective_variance': 9 / 4,
        })
    self._assert_metrics(
        _power_mean(self.batch, 0., _NO_CLIP).metrics, {
            'clip/low_frac': 0,
            'clip/high_frac': 0,
            'loss/live_frac': 1,
        })

  def test_of_grpo(self):
    self._assert_metrics(
        _grpo(self.batch).metrics,
        {
            'ratio/mean': (5 / 2 + 1 / 2) / 2,
            'ratio/min': 1 / 2,
            'ratio/max': 5 / 2,
            'clip/low_frac': 1 / 2,
            'clip/high_frac': 1 / 4,
            'loss/live_frac': 1 / 2,
            # Of 5/2 and -1.
            'advantage/effective_variance': (7 / 4)**2,
        })


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(*_LOSSES)
  def test_jit_equals_no_jit(self, loss, extra):
    # Where each operation is its own program, none can be simplified away.
    batch = _filled(_batch(), np.nan, -np.inf, np.nan)
    result = _any_loss(loss, extra, _batch())
    with jax.disable_jit():
      plain = loss(*batch, log_ratio_max=20., **_CLIP, **extra)
    chex.assert_trees_all_close(result[:2], plain, rtol=1e-5, atol=1e-7)

  @parameterized.named_parameters(*_LOSSES)
  def test_one_program_for_all_settings(self, loss, extra):
    traces = []

    def counted(*args, **settings):
      traces.append(None)
      return loss(*args, **settings)

    for i in (1, 2, 3):
      changed = {name: value + .1 * i for name, value in extra.items()}
      clip = {name: value / i for name, value in _CLIP.items()}
      _any_loss(counted, changed, _batch(sigma=i), clip, 10. * i)
    self.assertLen(traces, 1)

  @parameterized.named_parameters(*_LOSSES)
  def test_metrics_have_the_same_keys_and_are_scalars(self, loss, extra):
    empty = jax.tree.map(lambda x: x[:0], _batch())
    keys = set(_power_mean(_batch(), 0.).metrics)
    for batch in (_batch(), _batch(sigma=0), empty):
      result = _any_loss(loss, extra, batch)
      self.assertEqual(set(result.metrics), keys)
      for name, metric in {'loss': result.loss, **result.metrics}.items():
        self.assertEqual((metric.shape, metric.dtype), ((), np.float32), name)

  def test_vmap_over_runs(self):
    settings = {
        'p': jnp.array([-1., 0., 1.]),
        'clip_eps_low': jnp.array([.1, .2, .3]),
        'clip_eps_high': jnp.array([.3, .2, .1]),
        'log_ratio_max': jnp.array([20., .1, np.inf])
    }
    run = lambda settings: losses.power_mean_loss(*_batch(), **settings)
    together = jax.jit(jax.vmap(run))(settings)
    for i in range(3):
      one = jax.tree.map(lambda x, i=i: x[i], settings)
      chex.assert_trees_all_close(
          jax.tree.map(lambda x, i=i: x[i], together),
          _run(losses.power_mean_loss, _batch(), one)[:2],
          rtol=1e-5,
          atol=1e-7)


class KLPenaltyTest(parameterized.TestCase):

  # d = [-1/2, 0] in a row of two tokens, 1 in a row of one.
  @parameterized.named_parameters(
      ('k1', 'k1', [1 / 2, 0, -1], [1, 1, 1]),
      ('k2', 'k2', [1 / 8, 0, 1 / 2], [1 / 2, 0, -1]),
      ('k3', 'k3', [np.exp(-.5) - .5, 0, np.e - 2
                   ], [1 - np.exp(-.5), 0, 1 - np.e]))
  def test_by_hand(self, estimator, terms, slopes):
    logprobs = jnp.array([[-1., -2.], [-3., -1.], [-1., -1.]])
    ref_logprobs = jnp.array([[-1.5, -2.], [-2., -7.], [-5., -5.]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    value, (by_logprobs, by_ref) = _kl(estimator, logprobs, ref_logprobs, mask)
    np.testing.assert_allclose(
        value, ((terms[0] + terms[1]) / 2 + terms[2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(
        by_logprobs,
        [[slopes[0] / 4, slopes[1] / 4], [slopes[2] / 2, 0], [0, 0]],
        rtol=1e-6)
    np.testing.assert_array_equal(by_ref, 0)

  @parameterized.product(
      estimator=_ESTIMATORS, gap=(100., -100., 1e4, np.inf, -np.inf))
  def test_wide_gaps_are_finite(self, estimator, gap):
    ref_logprobs = jnp.array([[gap, -1.1]])
    value, (by_logprobs, _) = _kl(estimator, jnp.array([[0., -1.]]),
                                  ref_logprobs, jnp.ones((1, 2), bool))
    chex.assert_tree_all_finite((value, by_logprobs))
    self.assertEqual(by_logprobs[0, 0], 0)
    self.assertNotEqual(by_logprobs[0, 1], 0)
    d = np.clip(gap, -20, 20)
    expected = {'k1': -d, 'k2': d**2 / 2, 'k3': np.expm1(d) - d}[estimator]
    np.testing.assert_allclose(value, expected / 2, rtol=.01)

  @parameterized.parameters(*_ESTIMATORS)
  def test_finite_differences(self, estimator):
    with reference.x64():
      logprobs, ref_logprobs, _, mask = _batch(dtype=np.float64)
      of = lambda x: _kl(estimator, x, ref_logprobs, mask)
      by_logprobs = of(logprobs)[1][0]
      for index in np.ndindex(mask.shape):
        step = np.zeros(mask.shape)
        step[index] = 1e-5
        difference = (of(logprobs + step)[0] - of(logprobs - step)[0]) / 2e-5
        np.testing.assert_allclose(by_logprobs[index], difference, atol=1e-9)

  @parameterized.parameters(*_ESTIMATORS)
  def test_is_zero_at_the_anchor_and_on_nothing(self, estimator):
    logprobs, _, _, mask = _batch()
    self.assertEqual(_kl(estimator, logprobs, logprobs, mask)[0], 0)
    for empty in (jnp.zeros_like(mask), mask[:0]):
      x = logprobs[:len(empty)]
      value, gradients = _kl(estimator, x + 1, x, empty)
      self.assertEqual(value, 0)
      for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_narrow_inputs_are_computed_in_float32(self, dtype):
    logprobs, ref_logprobs, _, mask = _batch()
    narrow = [x.astype(dtype) for x in (logprobs, ref_logprobs)]
    wide = [x.astype(jnp.float32) for x in narrow]
    self.assertEqual(_kl('k3', *narrow, mask)[0], _kl('k3', *wide, mask)[0])

  def test_unknown_estimator(self):
    batch = _batch()
    with self.assertRaisesRegex(ValueError, 'k4.*must be k1, k2 or k3'):
      losses.kl_penalty(
          batch.logprobs, batch.old_logprobs, batch.mask, estimator='k4')


class ErrorsTest(parameterized.TestCase):

  @parameterized.product(
      case=_LOSSES,
      fault=(('logprobs', (5,), np.float32,
              'rank'), ('logprobs', (5, 7), np.float32,
                        'shape'), ('old_logprobs', (1, 6), np.float32,
                                   'shape'), ('mask', (5, 1), bool, 'shape'),
             ('mask', (5, 6), np.float32,
              'type'), ('mask', (5, 6), np.int32,
                        'type'), ('advantages', (5, 1), np.float32, 'shape'),
             ('advantages', (5, 6), np.float32,
              'shape'), ('advantages', (6,), np.float32,
                         'shape'), ('advantages', (), np.float32, 'shape')))
  def test_raises_when_traced(self, case, fault):
    (_, loss, extra), (field, shape, dtype, message) = case, fault
    batch = _batch()._replace(**{field: jax.ShapeDtypeStruct(shape, dtype)})
    with self.assertRaisesRegex(AssertionError, message):
      jax.eval_shape(lambda *b: loss(*b, **_CLIP, **extra), *batch)

  def test_raises_when_the_kl_is_traced(self):
    logprobs, _, _, mask = _batch()
    faults = ((logprobs[0], mask, 'rank'), (logprobs[:2], mask, 'shape'),
              (logprobs, mask * 1., 'type'))
    for ref_logprobs, mask, message in faults:
      with self.assertRaisesRegex(AssertionError, message):
        jax.eval_shape(
            functools.partial(losses.kl_penalty, estimator='k1'), logprobs,
            ref_logprobs, mask)


if __name__ == '__main__':
  absltest.main()
