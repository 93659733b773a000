"""Counts in fixed bins: by hand, by NumPy, and of whole updates."""

import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import histograms
from hmpo_jax.kernels import losses
from tests import small

_EDGES = np.array(histograms.EDGES)
_MIDDLE = histograms.BINS // 2


def _counts(values, where=None):
  values = jnp.asarray(values, jnp.float32)
  where = jnp.ones(values.shape, bool) if where is None else jnp.array(where)
  return np.asarray(jax.jit(histograms.counts)(values, where))


class EdgesTest(absltest.TestCase):
  def test_are_what_the_comment_says(self):
    widths = np.diff(_EDGES)
    self.assertLen(widths, histograms.BINS)
    np.testing.assert_allclose(_EDGES, -_EDGES[::-1], rtol=1e-12)
    np.testing.assert_allclose(_EDGES[-1], 1, rtol=1e-12)
    self.assertAlmostEqual(widths[_MIDDLE], 0.002, delta=2e-4)
    np.testing.assert_allclose(widths[-1] / widths[-2], 1.1, atol=0.01)


class CountsTest(absltest.TestCase):
  def test_equal_numpy(self):
    rng = np.random.default_rng(0)
    for scale in (1e-3, 0.03, 0.3):
      x = (scale * rng.standard_t(3, (20, 50))).astype(np.float32)
      x = np.clip(x, -0.999, 0.999)
      where = rng.random(x.shape) < 0.7
      expected, _ = np.histogram(x[where], _EDGES)
      np.testing.assert_array_equal(_counts(x, where), expected)

  def test_every_bin_has_its_middle_and_no_other(self):
    middles = (_EDGES[1:] + _EDGES[:-1]) / 2
    for i, middle in enumerate(middles):
      self.assertEqual(_counts([middle])[i], 1, middle)

  def test_what_is_beyond_the_edges_counts_at_the_ends(self):
    found = _counts([np.inf, 1.01, -np.inf, 0.0])
    self.assertEqual((found[0], found[_MIDDLE], found[-1]), (1, 1, 2))
    self.assertEqual(found.sum(), 4)

  def test_nan_and_what_is_masked_count_nowhere(self):
    found = _counts([np.nan, 1.0, np.nan, np.inf], [True, True, False, False])
    self.assertEqual(found.sum(), 1)
    self.assertEqual(_counts(np.zeros((0, 3))).tolist(), [0] * histograms.BINS)

  def test_no_gradient_flows(self):
    f = lambda x: jnp.sum(histograms.counts(x, jnp.ones(x.shape, bool)) * 3)
    self.assertEqual(jax.grad(f)(jnp.ones(2)).tolist(), [0, 0])

  def test_wrong_arguments_are_refused(self):
    with self.assertRaises(AssertionError):
      histograms.counts(jnp.ones(2), jnp.ones(3, bool))
    with self.assertRaises(AssertionError):
      histograms.counts(jnp.ones(2), jnp.ones(2))


def _bins(values):
  return np.histogram(values, _EDGES)[0].tolist()


def _metrics(loss, log_ratio, mask, **settings):
  """Of log-ratios [B, T] in rows of advantage 1."""
  settings |= {'clip_eps_low': 0.2, 'clip_eps_high': 0.2}
  return jax.jit(functools.partial(loss, **settings))(
    jnp.asarray(log_ratio, jnp.float32),
    jnp.zeros(mask.shape),
    jnp.ones(len(mask)),
    mask,
  )[1]


class LossTest(absltest.TestCase):
  def test_counts_of_a_batch_by_hand(self):
    # Rows of ratios [1, 1/2] and [2]: M_-1 = 2/3 and 2. The harmonic weights of
    # the first are 1/3 and 2/3, n w = 2/3 and 4/3; of the second, n w = 1.
    x = np.log([[1.0, 0.5], [2.0, 8.0], [9.0, 9.0]])
    mask = jnp.array([[True, True], [True, False], [False, False]])
    metrics = _metrics(losses.power_mean_loss, x, mask, p=-1.0)
    self.assertEqual(
      metrics['histogram/log_row_ratio'].tolist(), _bins(np.log([2 / 3, 2]))
    )
    self.assertEqual(
      metrics['histogram/log_token_weight'].tolist(),
      _bins(np.log([2 / 3, 4 / 3, 1])),
    )

  def test_tokens_that_the_clip_stops_have_no_weight(self):
    metrics = _metrics(
      losses.grpo_loss, np.log([[2.0, 1.0]]), jnp.ones((1, 2), bool)
    )
    self.assertEqual(
      metrics['histogram/log_token_weight'].tolist(), _bins(np.log([2]))
    )


class StepTest(absltest.TestCase):
  def test_step_counts_the_rows_of_all_its_updates(self):
    _, records = small.steps(small.config())
    record = records[0]
    rows = record['histogram/log_row_ratio']
    # 2 epochs of 2 minibatches of 16 of the 32 rows.
    self.assertEqual(rows.sum(), 64)
    # The first update is on-policy.
    self.assertGreaterEqual(rows[_MIDDLE], 16)
    low, high = np.exp(_EDGES[[np.flatnonzero(rows)[0], rows.nonzero()[0][-1]]])
    # What is beyond the edges is in the last bins.
    least, most = np.clip(
      [record['ratio/min'], record['ratio/max']], np.exp(-1), np.e
    )
    self.assertLessEqual(low, least + 1e-6)
    self.assertLessEqual(high, most)
    self.assertEqual(
      record['histogram/log_token_weight'].sum(), 2 * record['rollout/tokens']
    )

  def test_updates_with_a_numerical_fault_count_nowhere(self):
    static, hparams, state = small.start(small.config())
    state.params['head'] *= np.nan
    _, record = small.step(static, state, hparams, np.array(False))
    self.assertEqual(record['skipped/logprob'], 4)
    self.assertEqual(record['histogram/log_row_ratio'].sum(), 0)


if __name__ == '__main__':
  absltest.main()
