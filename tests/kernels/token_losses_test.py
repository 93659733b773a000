"""Losses of single tokens: by hand, by literal loops, by their gradients."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from tests import loss_batches
from tests import reference

_CLIP, _NO_CLIP = loss_batches.CLIP, loss_batches.NO_CLIP
_GRPO, _GSPO_TOKEN = loss_batches.GRPO, loss_batches.GSPO_TOKEN
_CISPO, _SAPO = loss_batches.CISPO, loss_batches.SAPO
_REINFORCE = loss_batches.REINFORCE
_LENGTHS = loss_batches.LENGTHS
_ROWS = 'sequence-mean-token-mean'
_TOKENS = 'token-mean'
_SUMS = 'sequence-mean-token-sum'

# One over what divides each token's gradient, in a batch of 4 rows that count.
_SHARES = {
  _ROWS: 1 / (4 * np.maximum(_LENGTHS, 1)),
  _TOKENS: np.full(5, 1 / 14),
  _SUMS: np.full(5, 1 / (4 * 8)),
}


def _clipped(r, a, _, dual_clip=math.inf):
  return reference.clipped(r, a, 0.2, 0.3, dual_clip)


def _weighted(r, a, logprob):
  return min(max(r, 0.8), 1.3) * a * logprob


def _soft(r, a, _):
  tau = 1 if a > 0 else 1.1
  return 4 / tau / (1 + math.exp(-tau * (r - 1))) * a


# Case, objective of a token, coefficient of the gradient of its log pi.
_LOSSES = (
    ('grpo', _GRPO, _clipped, _ROWS),
    ('dapo', loss_batches.DAPO, _clipped, _TOKENS),
    ('dr_grpo', loss_batches.DR_GRPO, _clipped, _SUMS),
    ('cispo', _CISPO, _weighted, _TOKENS),
    ('sapo', _SAPO, _soft, _ROWS),
    ('reinforce', _REINFORCE, lambda r, a, logprob: a * logprob, _ROWS),
)  # fmt: skip


def _stopped(r, a):
  return np.where(a > 0, r > 1.3, r < 0.8)


def _gate_slope(r, a):
  """r sech^2(tau (r - 1) / 2), the slope of SAPO's gate in log pi."""
  tau = np.where(a > 0, 1.0, 1.1)
  return r / np.cosh(tau * (r - 1) / 2) ** 2


_COEFFICIENTS = {
  'grpo': lambda r, a: np.where(_stopped(r, a), 0, a * r),
  'dapo': lambda r, a: np.where(_stopped(r, a), 0, a * r),
  'dr_grpo': lambda r, a: np.where(_stopped(r, a), 0, a * r),
  'cispo': lambda r, a: a * np.clip(r, 0.8, 1.3),
  'sapo': lambda r, a: a * _gate_slope(r, a),
  'reinforce': lambda r, a: a + 0 * r,
}


class ValueTest(parameterized.TestCase):
  @parameterized.named_parameters(*_LOSSES)
  def test_literal_loop(self, case, of_token, aggregation):
    for sigma in (0.1, 0.5, 2.0):
      batch = loss_batches.scattered(sigma)
      expected = reference.token_loss(*batch, of_token, aggregation, 8.0)
      loss = case.run(batch, length_scale=8.0).loss
      np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-7)

  @parameterized.named_parameters(*(case[:2] + case[3:] for case in _LOSSES))
  def test_gradient_is_the_coefficient_of_its_card(self, case, aggregation):
    name = self._testMethodName.rpartition('_card_')[2]
    for sigma in (0.1, 0.5, 2.0):
      batch = loss_batches.scattered(sigma)
      r = np.exp(np.float64(batch.log_ratios))
      advantages = np.float64(batch.advantages)[:, None]
      expected = -_COEFFICIENTS[name](r, advantages)
      expected = expected * _SHARES[aggregation][:, None] * batch.mask
      by_logprobs = case.run(batch, length_scale=8.0).by_logprobs
      # The gate of a wide ratio is 1 less what rounds.
      atol = 1e-7 if name == 'sapo' else 1e-9
      np.testing.assert_allclose(by_logprobs, expected, rtol=2e-6, atol=atol)
      np.testing.assert_array_equal(by_logprobs == 0, np.abs(expected) < 1e-12)

  # r = [1, 4] with A = 1 and eps .2, .3; the log-probabilities are [0, log 4].
  @parameterized.parameters(
      (_GRPO, (1 + 1.3) / 2),
      (_GSPO_TOKEN, 1.3),
      (_CISPO, 1.3 * np.log(4) / 2),
      (_SAPO, (2 + 4 / (1 + np.exp(-3))) / 2),
      (_REINFORCE, np.log(4) / 2))  # fmt: skip
  def test_by_hand(self, case, expected):
    batch = loss_batches.of_log_ratios([[0, np.log(4)]], [1.0])
    np.testing.assert_allclose(case.run(batch).loss, -expected, rtol=1e-6)

  def test_sides_of_the_clip_by_hand(self):
    # r = [1/2, 2] with A = 1, then -1: one side each is stopped by GRPO, both
    # are bounded by CISPO, whose logs of pi here are those of r.
    batch = loss_batches.of_log_ratios(
      2 * [[-np.log(2), np.log(2)]], [1.0, -1.0]
    )
    result = _GRPO.run(batch)
    np.testing.assert_allclose(
      result.loss, (-0.5 - 1.3 + 0.8 + 2) / 4, rtol=1e-6
    )
    np.testing.assert_allclose(
      result.by_logprobs[:2, :2], [[-0.5 / 4, 0], [0, 2 / 4]], rtol=1e-6
    )
    result = _CISPO.run(batch)
    np.testing.assert_allclose(result.loss, 0, atol=1e-7)
    np.testing.assert_allclose(
      result.by_logprobs[:2, :2], [[-0.2, -1.3 / 4], [0.2, 1.3 / 4]], rtol=1e-6
    )

  @parameterized.parameters((_GRPO,), (_GSPO_TOKEN,))
  def test_boundary_is_inside(self, case):
    for side in (-1.0, 1.0):
      eps = _CLIP['clip_eps_low' if side < 0 else 'clip_eps_high']
      bound = np.float32(jnp.log1p(side * jnp.float32(eps)))
      beyond = np.nextafter(bound, np.float32(side * np.inf))
      for x, slope in ((bound, -side * np.exp(bound)), (beyond, 0)):
        result = case.run(loss_batches.of_log_ratios([[x]], [side]))
        np.testing.assert_allclose(
          result.loss, -side * (1 + side * eps), rtol=3e-7
        )
        np.testing.assert_allclose(result.by_logprobs[0, 0], slope, rtol=3e-7)

  def test_compares_logs(self):
    # log(1 - 3e-4) = -3.00045e-4. The ratios of these two round to one number
    # in float32, whose spacing below 1 is 6e-8.
    log_ratios = np.float32([[-3.0002e-4], [-3.0007e-4]])
    self.assertEqual(*np.exp(log_ratios))
    batch = loss_batches.of_log_ratios(log_ratios, [-1.0, -1.0])
    for case in (_GRPO, _GSPO_TOKEN, loss_batches.SEQUENCE):
      result = case.run(batch, clip_eps_low=3e-4, clip_eps_high=4e-4)
      np.testing.assert_array_equal(
        result.by_logprobs[:2, 0] != 0, [True, False]
      )


class DualClipTest(parameterized.TestCase):
  @parameterized.parameters(1.5, 3.0, np.inf)
  def test_literal_loop(self, dual_clip):
    batch = loss_batches.scattered(sigma=2.0)
    of_token = lambda r, a, logprob: _clipped(r, a, logprob, dual_clip)
    expected = reference.token_loss(*batch, of_token)
    result = _GRPO.run(batch, dual_clip=dual_clip)
    np.testing.assert_allclose(result.loss, expected, rtol=2e-6)
    r, negative = np.exp(batch.log_ratios), batch.advantages[:, None] < 0
    bound = batch.mask & negative & (r > dual_clip)
    self.assertEqual(np.sum(bound) > 0, dual_clip < np.inf)
    np.testing.assert_array_equal(result.by_logprobs[bound], 0)
    share = np.mean((np.sum(bound, axis=1) / np.maximum(_LENGTHS, 1))[:4])
    np.testing.assert_allclose(
      result.metrics['clip/dual_frac'], share, rtol=1e-6
    )

  def test_leaves_positive_advantages(self):
    batch = loss_batches.of_log_ratios([[np.log(5)]], [1.0])
    for case in (_GRPO, _GSPO_TOKEN, loss_batches.SEQUENCE, loss_batches.TOKEN):
      result = case.run(batch, dual_clip=3.0, **_NO_CLIP)
      np.testing.assert_allclose(result.loss, -5, rtol=1e-6)
      self.assertEqual(result.metrics['clip/dual_frac'], 0)


class GSPOTokenTest(parameterized.TestCase):
  @parameterized.product(sigma=(0.1, 0.5, 2.0), dual_clip=(np.inf, 1.2))
  def test_is_gspo_where_the_advantage_is_one(self, sigma, dual_clip):
    batch = loss_batches.scattered(sigma)
    gspo = loss_batches.SEQUENCE.run(batch, p=0.0, dual_clip=dual_clip)
    wide = batch._replace(
      advantages=jnp.broadcast_to(batch.advantages[:, None], (5, 6))
    )
    for inputs in (batch, wide):
      result = _GSPO_TOKEN.run(inputs, dual_clip=dual_clip)
      np.testing.assert_allclose(result.loss, gspo.loss, rtol=1e-6)
      np.testing.assert_allclose(
        result.by_logprobs, gspo.by_logprobs, rtol=2e-6, atol=1e-9
      )
      for name in (
        'clip/low_frac',
        'clip/high_frac',
        'clip/dual_frac',
        'loss/live_frac',
        'ratio/mean',
        'advantage/effective_variance',
      ):
        np.testing.assert_allclose(
          result.metrics[name], gspo.metrics[name], rtol=1e-5, err_msg=name
        )

  def test_token_advantages_by_hand(self):
    # s = 2: A = 1 is stopped at 13/10, A = -3 keeps -6 and its own gradient.
    batch = loss_batches.of_log_ratios([[0, np.log(4)]], [1.0])
    advantages = jnp.zeros((5, 6)).at[0, :2].set(jnp.array([1.0, -3.0]))
    result = _GSPO_TOKEN.run(batch._replace(advantages=advantages))
    np.testing.assert_allclose(result.loss, -(1.3 - 6) / 2, rtol=1e-6)
    np.testing.assert_allclose(
      result.by_logprobs[0, :2], [0, 3 * 2 / 2], rtol=1e-6
    )

  def test_row_whose_token_advantages_cancel_is_live(self):
    batch = loss_batches.of_log_ratios([[0, 0]], [1.0])
    advantages = jnp.zeros((5, 6)).at[0, :2].set(jnp.array([1.0, -1.0]))
    result = _GSPO_TOKEN.run(batch._replace(advantages=advantages))
    self.assertEqual(result.metrics['loss/live_frac'], 1)

  @parameterized.parameters(0.1, 0.5, 2.0)
  def test_token_advantages_by_a_literal_loop(self, sigma):
    batch = loss_batches.scattered(sigma)
    advantages = np.random.default_rng(5).normal(size=(5, 6))
    expected, slopes = 0.0, np.zeros((5, 6))
    for i, valid in enumerate(np.asarray(batch.mask[:4])):
      x = np.float64(batch.log_ratios)[i][valid]
      s = math.exp(np.mean(x))
      for t in np.flatnonzero(valid):
        a = advantages[i, t]
        expected -= reference.clipped(s, a, 0.2, 0.3) / (4 * len(x))
        stopped = s > 1.3 if a > 0 else s < 0.8
        slopes[i, t] = 0 if stopped else -a * s / (4 * len(x))
    result = _GSPO_TOKEN.run(batch._replace(advantages=jnp.float32(advantages)))
    np.testing.assert_allclose(result.loss, expected, rtol=2e-6)
    np.testing.assert_allclose(result.by_logprobs, slopes, rtol=2e-6, atol=1e-9)


class CISPOTest(parameterized.TestCase):
  @parameterized.parameters(1.2, 5.0)
  def test_absolute_cap_is_eps_low_of_one_and_eps_high_of_cap_less_one(
    self, cap
  ):
    # TRL: -sg(min(r, cap)) A log pi, a mean over all tokens.
    batch = loss_batches.scattered(sigma=2.0)
    result = _CISPO.run(batch, clip_eps_low=1.0, clip_eps_high=cap - 1)
    expected = reference.token_loss(
      *batch, lambda r, a, logprob: min(r, cap) * a * logprob, _TOKENS
    )
    np.testing.assert_allclose(result.loss, expected, rtol=2e-6)
    weight = np.minimum(np.exp(np.float64(batch.log_ratios)), cap)
    slopes = -weight * np.float64(batch.advantages)[:, None] / 14 * batch.mask
    np.testing.assert_allclose(result.by_logprobs, slopes, rtol=2e-6)
    self.assertEqual(result.metrics['clip/low_frac'], 0)

  def test_every_token_keeps_its_gradient(self):
    batch = loss_batches.scattered(sigma=2.0)
    result = _CISPO.run(batch)
    np.testing.assert_array_equal(result.by_logprobs != 0, batch.mask)
    self.assertEqual(result.metrics['loss/live_frac'], 1)
    # What is bounded is counted all the same, on both sides of either sign.
    r = np.exp(np.asarray(batch.log_ratios))
    low, high = r < 0.8, r > 1.3
    for side, bound in (('low', low), ('high', high), ('outside', low | high)):
      share = np.sum(batch.mask & bound, axis=1) / np.maximum(_LENGTHS, 1)
      np.testing.assert_allclose(
        result.metrics[f'clip/{side}_frac'], np.mean(share[:4]), rtol=1e-6
      )


class SAPOTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 1.0), (0.5, 3.0))
  def test_temperature_goes_by_the_sign_of_the_advantage(
    self, tau_positive, tau_negative
  ):
    batch = loss_batches.of_log_ratios(2 * [[np.log(3)]], [1.0, -1.0])
    result = _SAPO.run(
      batch, tau_positive=tau_positive, tau_negative=tau_negative
    )
    gates, slopes = [], []
    for tau in (tau_positive, tau_negative):
      gates.append(4 / tau / (1 + math.exp(-2 * tau)))
      slopes.append(3 / math.cosh(tau) ** 2)
    np.testing.assert_allclose(
      result.loss, -(gates[0] - gates[1]) / 2, rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
      result.by_logprobs[:2, 0], [-slopes[0] / 2, slopes[1] / 2], rtol=2e-5
    )

  def test_is_bounded(self):
    batch = loss_batches.of_log_ratios([[19.9], [-19.9]], [1.0, 1.0])
    result = _SAPO.run(batch)
    low = 4 / (1 + math.e)
    np.testing.assert_allclose(result.loss, -(4 + low) / 2, rtol=1e-6)
    np.testing.assert_allclose(result.by_logprobs, 0, atol=1e-8)


class AggregationTest(parameterized.TestCase):
  # Rows of one token with r = 1 and of two with r = 1, 2; no clip, A = 1.
  @parameterized.parameters(
    (_GRPO, (1 + 3 / 2) / 2),
    (loss_batches.DAPO, (1 + 3) / 3),
    (loss_batches.DR_GRPO, (1 + 3) / (2 * 10)),
  )
  def test_by_hand(self, case, expected):
    batch = loss_batches.of_log_ratios([[0, 0], [0, np.log(2)]], [1.0, 1.0])
    batch = batch._replace(mask=batch.mask.at[0, 1].set(False))
    result = case.run(batch, length_scale=10.0, **_NO_CLIP)
    np.testing.assert_allclose(result.loss, -expected, rtol=1e-6)

  def test_length_scale_is_of_the_sums_only(self):
    batch = loss_batches.scattered()
    for case, scales in (
      (_GRPO, False),
      (loss_batches.DAPO, False),
      (loss_batches.DR_GRPO, True),
    ):
      one, two = (case.run(batch, length_scale=s).loss for s in (1.0, 2.0))
      self.assertEqual(one != two, scales)


if __name__ == '__main__':
  absltest.main()
