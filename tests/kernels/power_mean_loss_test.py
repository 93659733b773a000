"""Power-mean losses: closed forms, literal loops, clips and their centers."""

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import losses
from tests import loss_batches
from tests import reference

_ORDERS = loss_batches.ORDERS
_CLIP, _NO_CLIP = loss_batches.CLIP, loss_batches.NO_CLIP
_SEQUENCE, _SPLIT = loss_batches.SEQUENCE, loss_batches.SPLIT
_TOKEN, _TOKEN_LOG = loss_batches.TOKEN, loss_batches.TOKEN_LOG
_SEQUENCE_CLIPS = (_SEQUENCE, loss_batches.GEOMETRIC, loss_batches.UNBIASED)


def _of_log_ratios(*args):
  return loss_batches.of_log_ratios(*args)


def _log_means(batch, p):
  """Reference log M_p of the rows that have tokens."""
  return np.array(
    [
      reference.log_power_mean(x[valid], p)[0]
      for x, valid in zip(batch.log_ratios, np.asarray(batch.mask))
      if any(valid)
    ]
  )


def _weights(batch, p):
  """Reference softmax(p x) [5, 6], 0 off the mask."""
  weights = np.zeros(batch.mask.shape)
  for i, valid in enumerate(np.asarray(batch.mask[:4])):
    x = np.asarray(batch.log_ratios)[i][valid]
    weights[i, valid] = reference.log_power_mean(x, p)[1]
  return weights


def _stopped(log_means, batch, low=np.log(0.8), high=np.log(1.3)):
  """What min(M A, clip(M) A) stops, of the rows that have tokens."""
  advantages = np.asarray(batch.advantages[:4])
  return np.where(advantages > 0, log_means > high, log_means < low)


class ValueTest(parameterized.TestCase):
  # r = [1, 4]: A = 5/2, G = 2, H = 8/5, and a clip at 13/10.
  @parameterized.parameters((1.0, 5 / 2), (0.0, 2.0), (-1.0, 8 / 5))
  def test_by_hand(self, p, mean):
    batch = _of_log_ratios([[0, np.log(4)]], [1.0])
    for case in (_SEQUENCE, _SPLIT):
      np.testing.assert_allclose(case.run(batch, p=p).loss, -1.3, rtol=3e-7)
    # Tokens are stopped where A > 0 only: the 4 becomes 13/10, or e^(3/10).
    bounded = [reference.power_mean([1, r], p) for r in (1.3, np.exp(0.3))]
    opposed = batch._replace(advantages=-batch.advantages)
    for case, expected in zip((_TOKEN, _TOKEN_LOG), bounded):
      np.testing.assert_allclose(
        case.run(batch, p=p).loss, -expected, rtol=3e-7
      )
    for case in (_SEQUENCE, _SPLIT, _TOKEN, _TOKEN_LOG):
      np.testing.assert_allclose(case.run(opposed, p=p).loss, mean, rtol=3e-7)

  @parameterized.product(
    p=(-3.0, -1.0, 0.0, 0.5, 1.0, 2.0), clip=(_CLIP, _NO_CLIP)
  )
  def test_literal_loops(self, p, clip):
    batch = loss_batches.scattered()
    low, high = clip.values()
    for case, expected in (
      (_SEQUENCE, reference.power_mean_loss(*batch, p, low, high)),
      (_TOKEN, reference.token_clip_loss(*batch, p, 1 - low, 1 + high)),
      (
        _TOKEN_LOG,
        reference.token_clip_loss(*batch, p, np.exp(-low), np.exp(high)),
      ),
    ):
      loss = case.run(batch, p=p, **clip).loss
      # A mean of terms near 1, which can be far smaller itself.
      np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-7)

  @parameterized.parameters(_CLIP, _NO_CLIP)
  def test_order_zero_is_gspo(self, **clip):
    batch = loss_batches.scattered()
    np.testing.assert_allclose(
      _SEQUENCE.run(batch, p=0.0, **clip).loss,
      reference.gspo_loss(*batch, *clip.values()),
      rtol=1e-6,
    )

  @parameterized.product(sigma=(0.1, 0.3, 2.0), dual_clip=(np.inf, 1.5))
  def test_token_clip_at_order_one_is_grpo(self, sigma, dual_clip):
    # Not under the dual clip, which bounds the mean here and tokens there.
    batch = loss_batches.scattered(sigma)
    ours, grpo = (
      case.run(batch, dual_clip=dual_clip, **order)
      for case, order in ((_TOKEN, {'p': 1.0}), (loss_batches.GRPO, {}))
    )
    differs = dual_clip < np.inf and sigma > 1
    self.assertEqual(abs(ours.loss - grpo.loss) > 1e-6, differs)
    if not differs:
      np.testing.assert_allclose(
        ours.by_logprobs, grpo.by_logprobs, rtol=3e-6, atol=1e-8
      )

  def test_sequence_clip_at_order_one_is_grpo_only_without_a_clip(self):
    batch = loss_batches.scattered()
    for clip, equal in ((_NO_CLIP, True), (_CLIP, False)):
      ours = _SEQUENCE.run(batch, p=1.0, **clip).loss
      grpo = loss_batches.GRPO.run(batch, **clip).loss
      self.assertEqual(abs(ours - grpo) < 1e-6, equal)

  def test_gmpo_clips_logs_at_its_own_eps(self):
    # x = [1, -.2] with A = 1 is [.4, -.2], with A = -1 it stays; [-1, .2] the
    # other way round: GMPO's e^(.1), e^(.4), e^(-.4), e^(-.1).
    batch = _of_log_ratios(
      [[1, -0.2], [1, -0.2], [-1, 0.2], [-1, 0.2]], [1.0, -1.0, 1.0, -1.0]
    )
    result = _TOKEN_LOG.run(batch, p=0.0, clip_eps_low=0.4, clip_eps_high=0.4)
    np.testing.assert_allclose(
      result.loss,
      -(np.exp(0.1) - np.exp(0.4) + np.exp(-0.4) - np.exp(-0.1)) / 4,
      rtol=1e-5,
    )
    np.testing.assert_array_equal(
      result.by_logprobs[:4, :2] != 0,
      [[False, True], [True, True], [True, True], [False, True]],
    )

  def test_each_row_has_its_order(self):
    batch = loss_batches.scattered()
    orders = [1.0, -1.0, 0.0, 2.0, 0.0]
    for case in (_SEQUENCE, _TOKEN):
      together = case.run(batch, p=jnp.array(orders))
      for i, p in enumerate(orders):
        one = case.run(batch, p=p)
        np.testing.assert_allclose(
          together.by_logprobs[i], one.by_logprobs[i], rtol=1e-6
        )

  # One token, A = -1 and r = 5: J is -5, or -c where c < 5.
  @parameterized.parameters((np.inf, 5.0), (6.0, 5.0), (3.0, 3.0))
  def test_dual_clip_by_hand(self, dual_clip, expected):
    batch = _of_log_ratios([[np.log(5)], [np.log(5)]], [-1.0, 0.0])
    for case in (*_SEQUENCE_CLIPS, _TOKEN, loss_batches.AHM):
      result = case.run(batch, dual_clip=dual_clip)
      np.testing.assert_allclose(result.loss, expected / 2, rtol=1e-6)
      stopped = expected < 5
      self.assertEqual(result.by_logprobs[0, 0] == 0, stopped)
      self.assertEqual(result.metrics['clip/dual_frac'], stopped / 2)
      self.assertEqual(result.metrics['loss/live_frac'], (not stopped) / 2)


class GradientTest(parameterized.TestCase):
  @parameterized.product(p=_ORDERS, clip=(_CLIP, _NO_CLIP))
  def test_closed_form_under_a_sequence_clip(self, p, clip):
    # A_i M_p,i w_t / B where not clipped, else exactly 0.
    batch = loss_batches.scattered()
    means = _log_means(batch, p)
    stopped = _stopped(
      means,
      batch,
      np.log1p(-clip['clip_eps_low']),
      np.log1p(clip['clip_eps_high']),
    )
    scale = np.where(stopped, 0, batch.advantages[:4] * np.exp(means) / 4)
    expected = -np.append(scale, 0)[:, None] * _weights(batch, p)
    by_logprobs = _SEQUENCE.run(batch, p=p, **clip).by_logprobs
    np.testing.assert_allclose(by_logprobs, expected, rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(by_logprobs == 0, expected == 0)

  @parameterized.product(p=_ORDERS, in_logs=(False, True))
  def test_closed_form_under_a_token_clip(self, p, in_logs):
    # A_i M_p(r') w_t(p; r') / B on the tokens that are not clipped.
    batch = loss_batches.scattered()
    low, high = (-0.2, 0.3) if in_logs else (np.log(0.8), np.log(1.3))
    x = np.asarray(batch.log_ratios)
    positive = batch.advantages[:, None] > 0
    bounded = np.where(positive, np.minimum(x, high), np.maximum(x, low))
    inner = batch._replace(logprobs=bounded, old_logprobs=0 * x)
    scale = -batch.advantages[:4] * np.exp(_log_means(inner, p)) / 4
    expected = np.append(scale, 0)[:, None] * _weights(inner, p)
    expected[bounded != x] = 0
    case = _TOKEN_LOG if in_logs else _TOKEN
    np.testing.assert_allclose(
      case.run(batch, p=p).by_logprobs, expected, rtol=2e-6, atol=1e-9
    )
    self.assertBetween(np.sum(batch.mask & (bounded != x)), 2, 12)

  @parameterized.product(sign=(-1.0, 1.0), p=_ORDERS)
  def test_tie_at_one_has_the_whole_gradient(self, sign, p):
    batch = _of_log_ratios([[0.0]], [sign])
    for case in (_SEQUENCE, _SPLIT, _TOKEN, _TOKEN_LOG):
      result = case.run(batch, p=p)
      self.assertEqual((result.loss, result.by_logprobs[0, 0]), (-sign, -sign))

  @parameterized.parameters(1.0, -1.0)
  def test_harmonic_mean_and_one_spike(self, sign):
    # n / sum 1/r: blind to a spike up, ruled by a spike down.
    batch = _of_log_ratios([[5 * sign, 0, 0, 0, 0, 0]], [1.0])
    gradient = _SEQUENCE.run(batch, **_NO_CLIP).by_logprobs[0]
    expected = np.exp(-5 * sign) / (np.exp(-5 * sign) + 5)
    np.testing.assert_allclose(
      gradient[0] / np.sum(gradient), expected, rtol=1e-6
    )


class SplitTest(parameterized.TestCase):
  """Orders of their own for the clip and for the token weights."""

  @parameterized.parameters(*_ORDERS)
  def test_what_is_no_order_is_p(self, p):
    batch = loss_batches.scattered()
    plain = _SEQUENCE.run(batch, p=p)
    for order in (np.inf, -np.inf, np.nan, p):
      result = _SPLIT.run(batch, p=p, p_clip=order, p_grad=order)
      self.assertEqual(result.loss, plain.loss)
      np.testing.assert_allclose(
        result.by_logprobs, plain.by_logprobs, rtol=1e-6
      )
      np.testing.assert_allclose(
        result.by_settings['p'], plain.by_settings['p'], rtol=1e-6
      )

  @parameterized.product(p=(-1.0, 0.0), p_clip=(-50.0, 1.0, 50.0))
  def test_mask_is_that_of_the_order_of_the_clip(self, p, p_clip):
    batch = loss_batches.scattered(sigma=0.6)
    result = _SPLIT.run(batch, p=p, p_clip=p_clip)
    stopped = _stopped(_log_means(batch, p_clip), batch)
    self.assertFalse(
      np.array_equal(stopped, _stopped(_log_means(batch, p), batch))
    )
    np.testing.assert_array_equal(
      np.all(result.by_logprobs[:4] == 0, axis=1), stopped
    )
    # A row that is stopped has the value of the edge, else A M_p.
    value = np.where(
      stopped,
      np.where(batch.advantages[:4] > 0, 1.3, 0.8),
      np.exp(_log_means(batch, p)),
    )
    np.testing.assert_allclose(
      result.loss, -np.mean(batch.advantages[:4] * value), rtol=1e-6
    )

  @parameterized.product(p=(-1.0, 0.0, 2.0), p_grad=(-3.0, 0.0, 1.0))
  def test_gradient_has_the_weights_of_its_order(self, p, p_grad):
    batch = loss_batches.scattered()
    result = _SPLIT.run(batch, p=p, p_grad=p_grad, **_NO_CLIP)
    plain = _SEQUENCE.run(batch, p=p, **_NO_CLIP)
    scale = -batch.advantages[:4] * np.exp(_log_means(batch, p)) / 4
    np.testing.assert_allclose(
      result.by_logprobs,
      np.append(scale, 0)[:, None] * _weights(batch, p_grad),
      rtol=2e-6,
      atol=1e-9,
    )
    self.assertEqual(result.loss, plain.loss)
    np.testing.assert_allclose(
      result.by_settings['p'], plain.by_settings['p'], rtol=1e-6
    )
    for name in ('p_clip', 'p_grad'):
      self.assertEqual(result.by_settings[name], 0)

  def test_each_row_has_its_orders(self):
    batch = loss_batches.scattered(sigma=0.6)
    orders = {
      'p': jnp.array([1.0, -1.0, 0.0, 2.0, 0.0]),
      'p_clip': jnp.array([np.inf, 50.0, 1.0, -50.0, 0.0]),
      'p_grad': jnp.array([-1.0, np.inf, 1.0, 0.0, 0.0]),
    }
    together = _SPLIT.run(batch, **orders)
    for i in range(4):
      one = _SPLIT.run(batch, **{k: float(v[i]) for k, v in orders.items()})
      np.testing.assert_allclose(
        together.by_logprobs[i], one.by_logprobs[i], rtol=1e-6
      )

  def test_one_order_may_be_left_out(self):
    batch = loss_batches.scattered(sigma=0.6)
    for name in ('p_clip', 'p_grad'):
      loss, _ = jax.jit(
        lambda p, name=name: losses.power_mean_loss(
          *batch, p=-1.0, **{name: p}, **_CLIP
        )
      )(1.0)
      expected = _SPLIT.run(batch, **{name: 1.0}).loss
      np.testing.assert_allclose(loss, expected, rtol=1e-6)


class ClipTest(parameterized.TestCase):
  # On a grid, means of unlike tokens differ between orders by far more than
  # they round, and equal tokens are their mean exactly.
  @hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
  @hypothesis.given(
    strategies.lists(
      strategies.lists(strategies.integers(-6, 6), min_size=4, max_size=4),
      min_size=4,
      max_size=4,
    ),
    strategies.lists(
      strategies.sampled_from([-1.0, 1.0]), min_size=4, max_size=4
    ),
  )
  def test_fractions_are_monotone_in_the_order_for(self, eighths, advantages):
    batch = _of_log_ratios(np.array(eighths) / 8, advantages)
    metrics = [
      _SEQUENCE.run(batch, p=p).metrics
      for p in (-50.0, -4.0, -1.0, 0.0, 1.0, 4.0, 50.0)
    ]
    low, high = (
      [float(m[f'clip/{side}_frac']) for m in metrics]
      for side in ('low', 'high')
    )
    self.assertEqual(low, sorted(low, reverse=True))
    self.assertEqual(high, sorted(high))

  def test_one_range_stops_the_harmonic_mean_below_first(self):
    # r = [3/5, 1, 6/5] has A = 14/15, G = .896, H = 6/7; a clip at .88.
    batch = _of_log_ratios(np.log([[0.6, 1, 1.2]]), [-1.0])
    for p, stopped in ((1.0, 0), (0.0, 0), (-1.0, 1)):
      result = _SEQUENCE.run(batch, p=p, clip_eps_low=0.12, clip_eps_high=0.12)
      self.assertEqual(result.metrics['clip/low_frac'], stopped)

  @parameterized.product(log_ratio_max=(20.0, np.inf), p=(1.0, 50.0))
  def test_surrogate_of_an_exploded_row_is_the_clip_bound(
    self, log_ratio_max, p
  ):
    batch = _of_log_ratios([[1e4, -1e4]], [1.0])
    result = _SEQUENCE.run(batch, p=p, log_ratio_max=log_ratio_max)
    np.testing.assert_allclose(result.loss, -1.3, rtol=3e-7)
    np.testing.assert_array_equal(result.by_logprobs, 0)
    self.assertEqual(result.by_settings['p'], 0)

  def test_clamp_can_be_off(self):
    # 2 / (e^-30 + e^30), and the same of 20.
    batch = _of_log_ratios([[30.0, -30.0]], [1.0])
    for log_ratio_max, reach in ((np.inf, 30.0), (20.0, 20.0)):
      result = _SEQUENCE.run(batch, log_ratio_max=log_ratio_max)
      np.testing.assert_allclose(result.loss, -1 / np.cosh(reach), rtol=1e-5)

  def test_long_rows_in_bfloat16_keep_the_clip(self):
    # The quantum of bfloat16 at 1/2 is 13 times the clip at 3e-4.
    old_logprobs = jnp.full((2, 4096), -0.5, jnp.bfloat16)
    logprobs = old_logprobs.at[0, :1024].set(-0.50390625)
    batch = loss_batches.Batch(
      logprobs, old_logprobs, jnp.full(2, -1.0), jnp.ones((2, 4096), bool)
    )
    result = _SEQUENCE.run(batch, p=0.0, clip_eps_low=3e-4, clip_eps_high=4e-4)
    self.assertEqual(result.metrics['clip/low_frac'], 0.5)
    np.testing.assert_allclose(result.loss, (1 - 3e-4 + 1) / 2, rtol=1e-7)


class CenterTest(parameterized.TestCase):
  @parameterized.product(p=_ORDERS, sigma=(0.1, 0.6, 2.0))
  def test_geometric_gives_every_order_the_mask_of_gspo(self, p, sigma):
    batch = loss_batches.scattered(sigma)
    gspo = _SEQUENCE.run(batch, p=0.0)
    result = loss_batches.GEOMETRIC.run(batch, p=p)
    stopped = lambda result: np.all(result.by_logprobs == 0, axis=1)
    np.testing.assert_array_equal(stopped(result), stopped(gspo))
    for side in ('low', 'high'):
      name = f'clip/{side}_frac'
      self.assertEqual(result.metrics[name], gspo.metrics[name])
    # Stopped rows have the value of their edge, that of GSPO times M_p / M_0.
    means, geometric = _log_means(batch, p), _log_means(batch, 0.0)
    bounded = np.clip(geometric, np.log(0.8), np.log(1.3)) + means - geometric
    value = np.exp(np.where(_stopped(geometric, batch), bounded, means))
    np.testing.assert_allclose(
      result.loss, -np.mean(batch.advantages[:4] * value), rtol=1e-5
    )

  def test_geometric_leaves_order_zero_to_the_bit(self):
    for sigma in (0.1, 0.6, 2.0):
      batch = loss_batches.scattered(sigma)
      gspo = _SEQUENCE.run(batch, p=0.0)
      result = loss_batches.GEOMETRIC.run(batch, p=0.0)
      self.assertEqual(result.loss, gspo.loss)
      np.testing.assert_array_equal(result.by_logprobs, gspo.by_logprobs)

  @parameterized.product(p=(-1.0, 0.0, 1.0), sigma=(0.3, 0.6))
  def test_unbiased_moves_the_edges_by_the_mean_variance(self, p, sigma):
    # c = (p - 1) v / 2, v the mean of the population variances of 4 rows.
    batch = loss_batches.scattered(sigma)
    variances = [
      np.var(np.asarray(x)[valid])
      for x, valid in zip(batch.log_ratios[:4], np.asarray(batch.mask))
    ]
    shift = (p - 1) * np.mean(variances) / 2
    means = _log_means(batch, p)
    stopped = _stopped(means - shift, batch)
    edge = np.where(batch.advantages[:4] > 0, np.log(1.3), np.log(0.8)) + shift
    value = np.exp(np.where(stopped, edge, means))
    result = loss_batches.UNBIASED.run(batch, p=p)
    np.testing.assert_allclose(
      result.loss, -np.mean(batch.advantages[:4] * value), rtol=1e-6
    )
    np.testing.assert_array_equal(
      np.all(result.by_logprobs[:4] == 0, axis=1), stopped
    )
    if p == 1:
      self.assertEqual(result.loss, _SEQUENCE.run(batch, p=1.0).loss)


class ArithmeticHarmonicLossTest(parameterized.TestCase):
  def test_by_hand(self):
    # {1, 1, 8}: A = 10/3, H = 24/17, so sqrt(A H) = sqrt(80/17) and not G = 2.
    batch = _of_log_ratios([[0, 0, np.log(8)]], [-1.0])
    np.testing.assert_allclose(
      loss_batches.AHM.run(batch).loss, (80 / 17) ** 0.5, rtol=1e-6
    )

  @parameterized.parameters(0.1, 0.6)
  def test_value_and_gradient(self, sigma):
    batch = loss_batches.scattered(sigma)
    means = (_log_means(batch, 1.0) + _log_means(batch, -1.0)) / 2
    stopped = _stopped(means, batch)
    advantages = np.asarray(batch.advantages[:4])
    value = advantages * np.exp(np.clip(means, np.log(0.8), np.log(1.3)))
    value = np.where(stopped, value, advantages * np.exp(means))
    result = loss_batches.AHM.run(batch)
    np.testing.assert_allclose(result.loss, -np.mean(value), rtol=1e-6)
    weights = (_weights(batch, 1.0) + _weights(batch, -1.0)) / 2
    scale = np.append(np.where(stopped, 0, -value / 4), 0)
    np.testing.assert_allclose(
      result.by_logprobs, scale[:, None] * weights, rtol=2e-6, atol=1e-9
    )


if __name__ == '__main__':
  absltest.main()
