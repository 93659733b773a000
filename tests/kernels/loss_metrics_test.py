"""Every metric of a loss against a loop, and by hand where it can be."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from tests import loss_batches
from tests import reference

_SEQUENCE, _GRPO = loss_batches.SEQUENCE, loss_batches.GRPO
_CLIP, _NO_CLIP = loss_batches.CLIP, loss_batches.NO_CLIP


def _assert_metrics(metrics, expected, rtol=1e-6, atol=2e-7):
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=rtol, atol=atol, err_msg=name
    )


def _rows(batch):
  """Log-ratios and advantage of each row that has tokens, in float64."""
  for x, advantage, mask in zip(
    np.float64(batch.log_ratios),
    np.float64(batch.advantages),
    np.asarray(batch.mask),
  ):
    if any(mask):
      yield x[mask], advantage


def _of_log_ratios(batch):
  """What all losses report alike."""
  rows = [x for x, _ in _rows(batch)]
  tokens = np.concatenate(rows)
  skews = [np.mean((x - np.mean(x))**3) / np.std(x)**3
           for x in rows
           if len(x) > 1]  # fmt: skip
  arithmetic, geometric, harmonic = (
    [reference.power_mean(np.exp(x), p) for x in rows] for p in (1, 0, -1)
  )
  rates = []
  for a, h in zip(arithmetic, harmonic):
    distances = []
    for _ in range(6):
      distances.append((a - h) / (a + h))
      a, h = (a + h) / 2, 2 * a * h / (a + h)
    rates.append(1 - np.mean(distances))
  return {
    'log_ratio/mean': np.mean([np.mean(x) for x in rows]),
    'log_ratio/row_variance': np.mean([np.var(x) for x in rows]),
    'log_ratio/skew': np.mean(skews),
    'log_ratio/abs_max': np.max(np.abs(tokens)),
    'ratio/token/mean': np.mean(np.exp(tokens)),
    'ratio/token/std': np.std(np.exp(tokens)),
    'ratio/token/min': np.min(np.exp(tokens)),
    'ratio/token/max': np.max(np.exp(tokens)),
    'agm/arithmetic': np.mean(arithmetic),
    'agm/geometric': np.mean(geometric),
    'agm/harmonic': np.mean(harmonic),
    'agm/gap': np.mean(np.subtract(arithmetic, harmonic)),
    'agm/log_gap': np.mean(np.log(np.divide(arithmetic, harmonic))),
    'agm/convergence_rate': np.mean(rates),
    'advantage/negative_frac': 2 / 4,
    'advantage/positive_frac': 2 / 4,
    'nonfinite/advantages': 0,
    'nonfinite/logprobs': 0,
    'nonfinite/old_logprobs': 0,
    'ratio/clamped_frac': 0,
  }


def _of_ratios(ratios, live, advantages):
  """What depends on the ratio of a row, and on which rows are not stopped."""
  effective = np.multiply(ratios, advantages)[live]
  return {
    'ratio/mean': np.mean(ratios),
    'ratio/std': np.std(ratios),
    'ratio/min': np.min(ratios),
    'ratio/max': np.max(ratios),
    'loss/live_frac': np.mean(live),
    'advantage/effective_mean': np.mean(effective) if any(live) else 0,
    'advantage/effective_variance': np.var(effective) if any(live) else 0,
  }


def _of_weights(rows):
  """ESS and entropy of each row's token weights, of rows that have any."""
  rows = [np.asarray(w) / sum(w) for w in rows if sum(w) > 0]
  entropies = [-sum(v * math.log(v) for v in w if v > 0) for w in rows]
  return {
    'token_weight/ess': np.mean([1 / (len(w) * sum(w**2)) for w in rows]),
    'token_weight/entropy': np.mean(entropies),
    'token_weight/max': max(max(w) for w in rows),
  }


class LoopTest(parameterized.TestCase):
  @parameterized.product(
    case=(_SEQUENCE, _GRPO, loss_batches.CISPO, loss_batches.AHM),
    sigma=(0.1, 0.6),
  )
  def test_of_log_ratios(self, case, sigma):
    batch = loss_batches.scattered(sigma)
    _assert_metrics(case.run(batch).metrics, _of_log_ratios(batch), rtol=5e-6)

  @parameterized.product(
    p=(-1.0, 0.0, 1.0), sigma=(0.1, 0.6), clip=(_CLIP, _NO_CLIP)
  )
  def test_of_the_sequence_clip(self, p, sigma, clip):
    batch = loss_batches.scattered(sigma)
    advantages = np.array([a for _, a in _rows(batch)])
    ratios = np.array(
      [reference.power_mean(np.exp(x), p) for x, _ in _rows(batch)]
    )
    low = (advantages < 0) & (ratios < 1 - clip['clip_eps_low'])
    high = (advantages > 0) & (ratios > 1 + clip['clip_eps_high'])
    outside = (
      np.clip(ratios, 1 - clip['clip_eps_low'], 1 + clip['clip_eps_high'])
      != ratios
    )
    slopes = [reference.log_power_mean(x, p)[2] for x, _ in _rows(batch)]
    _assert_metrics(
      _SEQUENCE.run(batch, p=p, **clip).metrics,
      _of_ratios(ratios, ~(low | high), advantages)
      | _of_weights([np.exp(p * x) for x, _ in _rows(batch)])
      | {
        'clip/low_frac': np.mean(low),
        'clip/high_frac': np.mean(high),
        'clip/dual_frac': 0,
        'clip/outside_frac': np.mean(outside),
        'mean/p': p,
        'mean/dlog_dp': np.mean(slopes),
      },
      rtol=5e-6,
    )

  @parameterized.product(sigma=(0.1, 0.6, 2.0), dual_clip=(np.inf, 2.0))
  def test_of_the_token_clip(self, sigma, dual_clip):
    batch = loss_batches.scattered(sigma)
    low, high, dual, outside, weights = [], [], [], [], []
    for x, a in _rows(batch):
      r = np.exp(x)
      low.append((a < 0) & (r < 0.8))
      high.append((a > 0) & (r > 1.3))
      dual.append((a < 0) & (r > dual_clip))
      outside.append((r < 0.8) | (r > 1.3))
      weights.append(np.where(low[-1] | high[-1] | dual[-1], 0, r))
    _assert_metrics(
      _GRPO.run(batch, dual_clip=dual_clip).metrics,
      _of_ratios(
        [np.mean(np.exp(x)) for x, _ in _rows(batch)],
        np.array([np.any(w > 0) for w in weights]),
        [a for _, a in _rows(batch)],
      )
      | _of_weights(weights)
      | {
        f'clip/{side}_frac': np.mean([np.mean(s) for s in of])
        for side, of in (
          ('low', low),
          ('high', high),
          ('dual', dual),
          ('outside', outside),
        )
      },
      rtol=5e-6,
    )

  @parameterized.named_parameters(
    (
      'arithmetic_harmonic',
      loss_batches.AHM,
      lambda x, _: np.exp(x) / sum(np.exp(x)) + np.exp(-x) / sum(np.exp(-x)),
    ),
    ('gspo_token', loss_batches.GSPO_TOKEN, lambda x, _: 1 + 0 * x),
    ('reinforce', loss_batches.REINFORCE, lambda x, _: 1 + 0 * x),
    ('cispo', loss_batches.CISPO, lambda x, _: np.clip(np.exp(x), 0.8, 1.3)),
    (
      'sapo',
      loss_batches.SAPO,
      lambda x, a: (
        np.exp(x) / np.cosh((1 if a > 0 else 1.1) * (np.exp(x) - 1) / 2) ** 2
      ),
    ),
  )
  def test_of_the_weights_of(self, case, weigh):
    # GSPO-token reports them without the clip of its rows, which is off here.
    clip = _NO_CLIP if case is loss_batches.GSPO_TOKEN else {}
    batch = loss_batches.scattered(0.6)
    _assert_metrics(
      case.run(batch, **clip).metrics,
      _of_weights([weigh(x, a) for x, a in _rows(batch)]),
      rtol=5e-6,
    )


class HandTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Ratios 1 and 4 with A = 1, twice 1/2 with A = -2, and no tokens.
    self.batch = loss_batches.of_log_ratios(
      [[0, np.log(4)], 2 * [np.log(0.5)], [7.0, 7.0]], [1.0, -2.0, 3.0]
    )
    mask = self.batch.mask.at[2].set(False)
    self.batch = self.batch._replace(mask=mask)

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
      'log_ratio/row_variance': np.log(2) ** 2 / 2,
      'log_ratio/skew': 0,
      'agm/arithmetic': (5 / 2 + 1 / 2) / 2,
      'agm/geometric': (2 + 1 / 2) / 2,
      'agm/harmonic': (8 / 5 + 1 / 2) / 2,
      'agm/gap': (5 / 2 - 8 / 5) / 2,
      'agm/log_gap': np.log(25 / 16) / 2,
      'agm/convergence_rate': 1 - np.mean(distances) / 2,
      'ratio/token/mean': (1 + 4 + 1 / 2 + 1 / 2) / 4,
      'ratio/token/std': (1 + 16 + 1 / 2) / 4 - (3 / 2) ** 2,
      'ratio/token/min': 1 / 2,
      'ratio/token/max': 4,
      'advantage/negative_frac': 1 / 2,
      'advantage/positive_frac': 1 / 2,
    }
    expected['ratio/token/std'] **= 0.5
    for result in (_SEQUENCE.run(self.batch, p=0.0), _GRPO.run(self.batch)):
      _assert_metrics(result.metrics, expected)

  def test_of_power_mean(self):
    stopped = _SEQUENCE.run(self.batch, p=0.0).metrics
    ratios = {
      'ratio/mean': (2 + 1 / 2) / 2,
      'ratio/std': 3 / 4,
      'ratio/min': 1 / 2,
      'ratio/max': 2,
    }
    _assert_metrics(
      stopped,
      ratios
      | {
        'clip/low_frac': 1 / 2,
        'clip/high_frac': 1 / 2,
        'loss/live_frac': 0,
        'advantage/effective_mean': 0,
        'advantage/effective_variance': 0,
      },
    )
    _assert_metrics(
      _SEQUENCE.run(self.batch, p=0.0, **_NO_CLIP).metrics,
      ratios
      | {
        'clip/low_frac': 0,
        'clip/high_frac': 0,
        'loss/live_frac': 1,
        # Of A M = 2 and -1.
        'advantage/effective_mean': 1 / 2,
        'advantage/effective_variance': 9 / 4,
        'token_weight/ess': 1,
        'token_weight/entropy': np.log(2),
        'token_weight/max': 1 / 2,
      },
    )

  def test_of_grpo(self):
    # One token of the first row is stopped high, both of the second low: what
    # is left is the row with A = 1, A times its mean ratio 5/2.
    _assert_metrics(
      _GRPO.run(self.batch).metrics,
      {
        'ratio/mean': (5 / 2 + 1 / 2) / 2,
        'clip/low_frac': 1 / 2,
        'clip/high_frac': 1 / 4,
        'loss/live_frac': 1 / 2,
        'advantage/effective_mean': 5 / 2,
        'advantage/effective_variance': 0,
        'token_weight/ess': 1 / 2,
        'token_weight/entropy': 0,
        'token_weight/max': 1,
      },
    )

  def test_fractions_go_by_the_sign_of_the_advantage(self):
    # Ratios 2 and 1/2, each with A = 1, -1 and 0.
    x = [[np.log(2)], [np.log(2)], [np.log(2)], [-np.log(2)], [-np.log(2)]]
    batch = loss_batches.of_log_ratios(x, [1.0, -1.0, 0.0, -1.0, 1.0])
    for case in (
      _SEQUENCE,
      loss_batches.GEOMETRIC,
      _GRPO,
      loss_batches.TOKEN,
      loss_batches.GSPO_TOKEN,
    ):
      _assert_metrics(
        case.run(batch).metrics,
        {
          'clip/high_frac': 1 / 5,
          'clip/low_frac': 1 / 5,
          'clip/outside_frac': 1,
          'loss/live_frac': 2 / 5,
          'advantage/positive_frac': 2 / 5,
          'advantage/negative_frac': 2 / 5,
        },
      )

  def test_rows_without_advantage_are_no_part_of_the_effective_ones(self):
    batch = loss_batches.of_log_ratios([[0.0], [0.0], [0.0]], [3.0, 1.0, 0.0])
    _assert_metrics(
      _SEQUENCE.run(batch).metrics,
      {
        'advantage/effective_mean': 2,
        'advantage/effective_variance': 1,
        'loss/live_frac': 2 / 3,
      },
    )

  def test_one_token_takes_all_the_weight(self):
    batch = loss_batches.of_log_ratios([[-10, 0, 0, 0, 0, 0]], [1.0])
    metrics = _SEQUENCE.run(batch).metrics
    for name, expected in (('ess', 1 / 6), ('entropy', 0.0), ('max', 1.0)):
      np.testing.assert_allclose(
        metrics[f'token_weight/{name}'], expected, atol=3e-3
      )

  def test_tiny_coefficients_keep_their_weights(self):
    # Their squares are below the smallest float32.
    batch = loss_batches.of_log_ratios([2 * [-19.9]], [1.0])
    metrics = loss_batches.GRPO.run(batch, log_ratio_max=np.inf).metrics
    self.assertEqual(metrics['token_weight/ess'], 1)
    batch = loss_batches.of_log_ratios([2 * [-60.0]], [1.0])
    metrics = loss_batches.GRPO.run(batch, log_ratio_max=np.inf).metrics
    self.assertEqual(metrics['token_weight/ess'], 1)

  def test_skew_is_of_rows_that_vary(self):
    # x = [0, 0, 3]: deviations -1, -1, 2, variance 2, third moment 2.
    batch = loss_batches.of_log_ratios([[0, 0, 3], [1, 1, 1]], [1.0, 1.0])
    np.testing.assert_allclose(
      _SEQUENCE.run(batch).metrics['log_ratio/skew'], 2**-0.5, rtol=1e-6
    )

  def test_counts_advantages_that_are_not_finite(self):
    batch = loss_batches.scattered()
    batch = batch._replace(
      advantages=batch.advantages.at[jnp.array([1, 4])].set(np.nan)
    )
    for case in (_SEQUENCE, _GRPO, loss_batches.GSPO_TOKEN):
      self.assertEqual(case.run(batch).metrics['nonfinite/advantages'], 1)


if __name__ == '__main__':
  absltest.main()
