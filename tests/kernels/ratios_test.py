"""Log-ratios, what is clamped of them, and means that skip empty rows."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import ratios
from tests import loss_batches

_INF = np.inf


@jax.jit
def _log_ratio(logprobs, old_logprobs, mask, log_ratio_max):
  return ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)


@jax.jit
def _slopes(logprobs, old_logprobs, mask, log_ratio_max):
  """d sum x and d sum logprobs, in each argument but the mask."""

  def total(name, new, old, bound):
    result = ratios.log_ratio(new, old, mask, bound)
    return jnp.sum(getattr(result, name))

  return [
    jax.grad(lambda *args, name=name: total(name, *args), (0, 1, 2))(
      logprobs, old_logprobs, log_ratio_max
    )
    for name in ('x', 'logprobs')
  ]


def _row(*values):
  return jnp.array([values], jnp.float32)


class LogRatioTest(parameterized.TestCase):
  # New, old, then x, log pi and whether it is clamped; bounds 20 and inf.
  @parameterized.parameters(
    (-1.0, -1.5, 0.5, -1.0, False, 0.5, -1.0, False),
    (10.0, -10.0, 20.0, 10.0, False, 20.0, 10.0, False),
    (0.0, 25.0, -20.0, 0.0, True, -25.0, 0.0, False),
    (1e4, -1.0, 20.0, 1e4, True, 10001.0, 1e4, False),
    (-_INF, -1.0, -20.0, -21.0, True, -20.0, -21.0, True),
    (_INF, -1.0, 20.0, 19.0, True, 20.0, 19.0, True),
    (-1.0, -_INF, 20.0, -1.0, True, 20.0, -1.0, True),
    (-_INF, -_INF, 0.0, 0.0, True, 0.0, 0.0, True),
  )
  def test_by_hand(self, new, old, *expected):
    mask = jnp.ones((1, 3), bool)
    new, old = _row(new, -1.0, 0.0), _row(old, -1.0, 0.0)
    for bound, (x, logprob, clamped) in (
      (20.0, expected[:3]),
      (_INF, expected[3:]),
    ):
      result = _log_ratio(new, old, mask, bound)
      np.testing.assert_array_equal(result.x, _row(x, 0, 0))
      np.testing.assert_array_equal(result.logprobs, _row(logprob, -1, 0))
      np.testing.assert_array_equal(result.clamped, [[clamped, False, False]])
      np.testing.assert_allclose(
        result.metrics['ratio/clamped_frac'], clamped / 3, rtol=1e-6
      )
      for slope in _slopes(new, old, mask, bound):
        np.testing.assert_array_equal(slope[0], [[1.0 - clamped, 1, 1]])
        np.testing.assert_array_equal(slope[1], jnp.zeros_like(old))
        self.assertEqual(slope[2], 0)

  def test_infinite_log_ratio_has_the_smaller_bound(self):
    for bound, expected in ((5.0, 5.0), (30.0, 20.0)):
      x = _log_ratio(_row(0.0), _row(-_INF), jnp.ones((1, 1), bool), bound).x
      self.assertEqual(x[0, 0], expected)

  def test_counts_what_is_not_finite_on_the_mask(self):
    new = _row(-_INF, np.nan, _INF, np.nan)
    old = _row(-1.0, np.nan, -1.0, -_INF)
    mask = jnp.array([[True, True, False, False]])
    metrics = _log_ratio(new, old, mask, 20.0).metrics
    self.assertEqual(metrics['nonfinite/logprobs'], 2)
    self.assertEqual(metrics['nonfinite/old_logprobs'], 1)

  def test_what_is_masked_changes_no_bit(self):
    batch = loss_batches.scattered()
    for fill in loss_batches.GARBAGE:
      dirty, clean = (
        loss_batches.filled(batch, value, -value, 0.0) for value in (fill, 0.0)
      )
      for of in (_log_ratio, _slopes):
        chex.assert_trees_all_equal(
          *(
            of(b.logprobs, b.old_logprobs, b.mask, 20.0) for b in (dirty, clean)
          )
        )

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_narrow_inputs_are_subtracted_in_float32(self, dtype):
    # 1000 - 1/8 needs 13 bits, more than either has.
    new, old = (jnp.array([[x]], dtype) for x in (-0.125, -1000.0))
    result = _log_ratio(new, old, jnp.ones((1, 1), bool), _INF)
    self.assertEqual(result.x.dtype, np.float32)
    self.assertEqual(result.x[0, 0], -0.125 - np.float32(old[0, 0]))

  @parameterized.named_parameters(
    ('rank', (6,), (5, 6), (5, 6), bool, np.float32, 'rank'),
    ('shape', (5, 6), (5, 7), (5, 6), bool, np.float32, 'shape'),
    ('mask', (5, 6), (5, 6), (5, 6), np.int32, np.float32, 'type'),
    ('integers', (5, 6), (5, 6), (5, 6), bool, np.int32, 'type'),
  )
  def test_raises_when_traced(self, new, old, mask, mask_dtype, dtype, message):
    with self.assertRaisesRegex(AssertionError, message):
      jax.eval_shape(
        _log_ratio,
        jax.ShapeDtypeStruct(new, dtype),
        jax.ShapeDtypeStruct(old, dtype),
        jax.ShapeDtypeStruct(mask, mask_dtype),
        20.0,
      )


class MeanTest(parameterized.TestCase):
  def test_rows_and_tokens_by_hand(self):
    mask = jnp.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    values = jnp.array(
      [[1.0, 2.0, np.nan], 3 * [np.inf], [np.nan, 7.0, -np.inf]]
    )
    means = ratios.token_mean(values, mask)
    np.testing.assert_array_equal(means, [1.5, 0, 7])
    rows = jnp.any(mask, axis=1)
    self.assertEqual(ratios.row_mean(means, rows), 4.25)
    self.assertEqual(ratios.row_mean(jnp.full(3, np.nan), rows & False), 0)

  def test_of_rows(self):
    mask = jnp.array([[1, 1], [0, 0]], bool)
    advantages = jnp.array([2.0, np.nan], jnp.bfloat16)
    rows, kept = ratios.of_rows(advantages, mask)
    np.testing.assert_array_equal(rows, [True, False])
    np.testing.assert_array_equal(kept, np.float32([2, 0]))
    self.assertEqual(kept.dtype, np.float32)

  # Rows of 1, 3 and 0 tokens with token means 2 and 4: sums 2 and 12.
  @parameterized.parameters(
    ('sequence-mean-token-mean', 3.0),
    ('token-mean', 14 / 4),
    ('sequence-mean-token-sum', 14 / 2 / 5),
  )
  def test_aggregate_by_hand(self, aggregation, expected):
    mask = jnp.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    means = jnp.array([2.0, 4.0, np.nan])
    value = ratios.aggregate(means, mask, aggregation, 5.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    nothing = ratios.aggregate(means, mask & False, aggregation, 5.0)
    self.assertEqual(nothing, 0)

  def test_unknown_aggregation(self):
    with self.assertRaisesRegex(
      ValueError, "aggregation='sum': must be one of .*, token-mean, "
    ):
      ratios.aggregate(jnp.ones(1), jnp.ones((1, 1), bool), 'sum', 1.0)


if __name__ == '__main__':
  absltest.main()
