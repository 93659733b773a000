"""What every loss owes, whatever it computes: one table, one contract."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import histograms
from tests import loss_batches

# Of the ways to come from log-ratios to a loss, one each.
_NARROW = (loss_batches.SEQUENCE, loss_batches.GRPO, loss_batches.CISPO)
_every_loss = parameterized.named_parameters(*loss_batches.CASES)
_LENGTHS = loss_batches.LENGTHS


@loss_batches.jit_loss
def _gradient(loss, batch, settings):
  """Loss and its gradient by logprobs, of a program without the metrics."""
  of = lambda logprobs: loss(logprobs, *batch[1:], **settings)[0]
  return jax.value_and_grad(of)(batch.logprobs)


def _run(case, batch, **changes):
  return _gradient(case.loss, batch, case.settings | changes)


def _variants(case):
  """Settings that the options of a case have to withstand."""
  yield {}
  if 'clip_eps_low' in case.settings:
    yield loss_batches.NO_CLIP
  if 'dual_clip' in case.settings:
    yield {'dual_clip': 3.0}
  if 'p' in case.settings:
    yield from ({'p': p} for p in (-50.0, 0.0, 1.0, 50.0))
  if 'p_clip' in case.settings:
    yield {'p_clip': 1.0, 'p_grad': 50.0}


class OnPolicyTest(parameterized.TestCase):
  @_every_loss
  def test_ratios_are_one_and_gradients_agree(self, case):
    batch = loss_batches.scattered(sigma=0)
    share = 1 / (4 * np.maximum(_LENGTHS, 1))
    if case in (loss_batches.DAPO, loss_batches.CISPO):
      share = 1 / 14
    elif case is loss_batches.DR_GRPO:
      share = 1 / (4 * case.settings['length_scale'])
    expected = -(batch.advantages * share)[:, None] * batch.mask
    for changes in _variants(case):
      result = case.run(batch, **changes)
      np.testing.assert_allclose(result.by_logprobs, expected, rtol=3e-7)
      for name in ('mean', 'min', 'max'):
        self.assertEqual(result.metrics[f'ratio/{name}'], 1)
        self.assertEqual(result.metrics[f'ratio/token/{name}'], 1)
      self.assertEqual(result.metrics['ratio/std'], 0)
      self.assertEqual(result.metrics['loss/live_frac'], 1)
      np.testing.assert_allclose(
        result.metrics['token_weight/ess'], 1, rtol=1e-6
      )
      for gradient in result.by_settings.values():
        self.assertEqual(gradient, 0)

  def test_orders_agree_to_the_bit(self):
    batch = loss_batches.scattered(sigma=0)
    gradients = [
      loss_batches.SEQUENCE.run(batch, p=p).by_logprobs
      for p in loss_batches.ORDERS
    ]
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, gradients[0])


class FlowTest(parameterized.TestCase):
  @_every_loss
  def test_flows_through_logprobs_and_the_order_only(self, case):
    result = case.run(loss_batches.scattered())
    self.assertGreater(np.abs(result.by_logprobs).max(), 0)
    np.testing.assert_array_equal(result.by_old_logprobs, 0)
    np.testing.assert_array_equal(result.by_advantages, 0)
    for name, gradient in result.by_settings.items():
      self.assertEqual(gradient != 0, name == 'p', name)

  @_every_loss
  def test_is_on_the_mask_and_nowhere_else(self, case):
    batch = loss_batches.scattered()
    clip = loss_batches.NO_CLIP if 'clip_eps_low' in case.settings else {}
    result = case.run(batch, **clip)
    np.testing.assert_array_equal(result.by_logprobs != 0, batch.mask)


@loss_batches.jit_loss
def _of_runs(loss, batch, settings):
  return jax.vmap(lambda settings: loss(*batch, **settings)[0])(settings)


class MaskTest(parameterized.TestCase):
  @_every_loss
  def test_what_is_masked_changes_no_bit(self, case):
    batch = loss_batches.scattered()
    clean = case.run(loss_batches.filled(batch, 0.0, 0.0, 0.0))
    chex.assert_tree_all_finite(clean)
    for fill in loss_batches.GARBAGE:
      for fills in (
        (fill, 0.0, 0.0),
        (0.0, fill, 0.0),
        (0.0, 0.0, fill),
        (fill, -fill, fill),
      ):
        dirty = case.run(loss_batches.filled(batch, *fills))
        chex.assert_trees_all_equal(clean, dirty)

  @_every_loss
  def test_rows_and_columns_without_tokens_count_nowhere(self, case):
    batch = loss_batches.scattered()
    pad = lambda x: jnp.pad(x, ((0, 5), (1, 3))[: x.ndim])
    padded = loss_batches.Batch(*map(pad, batch))
    loss, by_logprobs = _run(case, padded)
    expected = case.run(batch)
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(
      by_logprobs, pad(expected.by_logprobs), rtol=2e-6, atol=1e-8
    )
    np.testing.assert_array_equal(
      by_logprobs != 0, pad(expected.by_logprobs != 0)
    )

  @_every_loss
  def test_nothing_to_train_on(self, case):
    batch = loss_batches.scattered()
    masked = batch._replace(mask=jnp.zeros((5, 6), bool))
    no_rows = loss_batches.Batch(*(x[:0] for x in batch))
    no_tokens = loss_batches.Batch(
      *(x[:, :0] if x.ndim == 2 else x for x in batch)
    )
    for empty in (masked, no_rows, no_tokens):
      result = case.run(empty)
      self.assertEqual(result.loss, 0)
      chex.assert_tree_all_finite(result)
      _assert_no_gradient(result)

  @_every_loss
  def test_no_advantage(self, case):
    batch = loss_batches.scattered()._replace(advantages=jnp.zeros(5))
    result = case.run(batch)
    self.assertEqual(result.loss, 0)
    _assert_no_gradient(result)

  @_every_loss
  def test_batch_that_is_clipped_throughout(self, case):
    batch = loss_batches.of_log_ratios([[2.0, 3.0], [-2.0, -3.0]], [1.0, -1.0])
    result = case.run(batch)
    chex.assert_tree_all_finite(result)
    stops = 'clip_eps_low' in case.settings and case != loss_batches.CISPO
    self.assertEqual(result.metrics['loss/live_frac'], 0.0 if stops else 1.0)
    self.assertEqual(np.any(result.by_logprobs != 0), not stops)
    if stops:
      _assert_no_gradient(result)


def _assert_no_gradient(result):
  assert result.metrics['loss/live_frac'] == 0
  for gradient in jax.tree.leaves(result[2:]):
    np.testing.assert_array_equal(gradient, 0)


class InvarianceTest(parameterized.TestCase):
  """Where rows and tokens lie, and how often each is there, says nothing."""

  @_every_loss
  def test_order_of_rows_and_tokens(self, case):
    batch = loss_batches.scattered()
    expected = case.run(batch)

    @hypothesis.settings(deadline=None, derandomize=True, max_examples=15)
    @hypothesis.given(
      strategies.permutations(range(5)), strategies.permutations(range(6))
    )
    def check(rows, columns):
      move = lambda x: x[rows][:, columns] if x.ndim == 2 else x[rows]
      rows, columns = np.array(rows), np.array(columns)
      result = case.run(loss_batches.Batch(*map(move, batch)))
      np.testing.assert_allclose(result.loss, expected.loss, rtol=2e-6)
      np.testing.assert_allclose(
        result.by_logprobs, move(expected.by_logprobs), rtol=2e-6, atol=1e-8
      )

    check()

  @_every_loss
  def test_every_row_twice(self, case):
    batch = loss_batches.scattered()
    twice = lambda x: jnp.pad(
      jnp.concatenate([x, x]), ((0, 0), (0, 4))[: x.ndim]
    )
    loss, by_logprobs = _run(case, loss_batches.Batch(*map(twice, batch)))
    expected = case.run(batch)
    np.testing.assert_allclose(loss, expected.loss, rtol=2e-6)
    np.testing.assert_allclose(
      2 * by_logprobs, twice(expected.by_logprobs), rtol=2e-6, atol=1e-8
    )


# Log-probabilities of valid tokens, before and after, and how many of them are
# clamped at 20 nats.
_HOSTILE = {
  'opposite_80': ([80, -80], [0, 0], 2),
  'opposite_1e4': ([1e4, -1e4], [0, 0], 2),
  'up_1e4': ([1e4], [0], 1),
  'down_1e4': ([-1e4, 0], [0, 0], 1),
  'spike_up': ([80, 0, 0, 0, 0, 0], 6 * [0], 1),
  'spike_down': ([0, 0, 0, 0, 0, -80], 6 * [0], 1),
  'one_token': ([-1.5], [-1], 0),
  'tiny': ([1e-4, -2e-4, 3e-4], 3 * [0], 0),
  'equal': (6 * [0.01], 6 * [0], 0),
  'on_the_edge_of_the_clip': (np.log([0.8, 1.3, 1.0]), 3 * [0], 0),
  'at_the_bound': ([20, -20], [0, 0], 0),
  'gone': ([-np.inf, -1, -2], [-1, -1, -2], 1),
  'never_was': ([-1, -1, -2], [-np.inf, -1, -2], 1),
  'ruled_out_twice': ([-np.inf, -1], [-np.inf, -1.1], 1),
  'nothing_left': ([-np.inf, -np.inf], [-1, -1], 2),
}


def _hostile(name):
  new, old, num_clamped = _HOSTILE[name]
  batch = loss_batches.of_log_ratios([new, new, new], [1.0, -1.0, 0.0])
  old_logprobs = batch.old_logprobs.at[:3, : len(old)].set(
    jnp.array(old, jnp.float32)
  )
  return batch._replace(old_logprobs=old_logprobs), num_clamped / len(new)


class HostileTest(parameterized.TestCase):
  @_every_loss
  def test_stays_finite_and_counts_what_it_clamps(self, case):
    for name, (logprobs, _, _) in _HOSTILE.items():
      batch, clamped = _hostile(name)
      within = np.abs(batch.log_ratios) <= 20
      for changes in _variants(case):
        result = case.run(batch, **changes)
        chex.assert_tree_all_finite(result)
        np.testing.assert_allclose(
          result.metrics['ratio/clamped_frac'], clamped, rtol=1e-6
        )
        np.testing.assert_array_equal(result.by_logprobs[~within], 0)
        gone = 3 * sum(np.isneginf(logprobs))
        self.assertEqual(result.metrics['nonfinite/logprobs'], gone)

  @_every_loss
  def test_without_a_bound_a_token_at_minus_infinity_stays_finite(self, case):
    for name in ('gone', 'never_was', 'ruled_out_twice', 'nothing_left'):
      batch, clamped = _hostile(name)
      result = case.run(batch, log_ratio_max=np.inf)
      chex.assert_tree_all_finite(result)
      np.testing.assert_allclose(
        result.metrics['ratio/clamped_frac'], clamped, rtol=1e-6
      )

  @_every_loss
  def test_narrow_inputs_are_computed_in_float32(self, case):
    # e^12 overflows in float16; and one token of 14 is clamped.
    batch = loss_batches.scattered()
    logprobs = batch.logprobs.at[1, 2].set(10.0).at[0, 1].set(-6e4)
    batch = batch._replace(logprobs=logprobs)
    dtypes = (jnp.float16, jnp.bfloat16)
    for dtype in dtypes if case in _NARROW else dtypes[:1]:
      narrow = loss_batches.Batch(
        *(x.astype(dtype) for x in batch[:3]), batch.mask
      )
      wide = loss_batches.Batch(
        *(x.astype(np.float32) for x in narrow[:3]), batch.mask
      )
      loss, by_logprobs = _run(case, narrow)
      expected = case.run(wide)
      chex.assert_tree_all_finite((loss, by_logprobs))
      np.testing.assert_allclose(loss, expected.loss, rtol=1e-6)
      np.testing.assert_allclose(
        expected.metrics['ratio/clamped_frac'], 1 / 14, rtol=1e-6
      )
      self.assertEqual((loss.dtype, by_logprobs.dtype), (np.float32, dtype))
      np.testing.assert_allclose(
        np.float32(by_logprobs),
        np.float32(expected.by_logprobs.astype(dtype)),
        rtol=2 * float(jnp.finfo(dtype).eps),
      )

  def test_long_rows_lose_no_digit(self):
    # 32768 equal tokens: every mean is theirs, and each gradient A M / n.
    ones = jnp.ones((1, 32768))
    batch = loss_batches.Batch(0.01 * ones, 0 * ones, jnp.ones(1), ones > 0)
    for name in ('sequence', 'token', 'grpo', 'gspo_token'):
      loss, by_logprobs = _run(dict(loss_batches.CASES)[name], batch)
      np.testing.assert_allclose(loss, -np.exp(0.01), rtol=1e-6)
      np.testing.assert_allclose(
        by_logprobs, -np.exp(0.01) / 32768 * ones, rtol=1e-5
      )


class TransformationTest(parameterized.TestCase):
  @_every_loss
  def test_jit_equals_no_jit(self, case):
    # Where each operation is its own program, none can be simplified away.
    batch = loss_batches.scattered()
    dirty = loss_batches.filled(batch, np.nan, -np.inf, np.nan)
    with jax.disable_jit():
      plain = case.loss(*dirty, **case.settings)
    result = case.run(batch)
    chex.assert_trees_all_close(result[:2], plain, rtol=1e-5, atol=1e-6)

  @_every_loss
  def test_one_program_for_all_settings(self, case):
    case.run(loss_batches.scattered())
    before = len(loss_batches.traces)
    for i in (2, 3):
      settings = {name: value / i for name, value in case.settings.items()}
      case.run(loss_batches.scattered(sigma=i), **settings)
    self.assertLen(loss_batches.traces, before)

  @_every_loss
  def test_vmap_over_runs(self, case):
    batch = loss_batches.scattered(sigma=0.6)
    settings = {
      name: jnp.array([value, value / 2, value / 4])
      for name, value in case.settings.items()
    } | {'log_ratio_max': jnp.array([20.0, 0.1, np.inf])}
    if 'p' in settings:
      settings['p'] = jnp.array([-1.0, 0.0, 1.0])
    if 'p_clip' in settings:
      settings |= {'p_clip': jnp.array([np.inf, 1.0, -1.0])}
    together = _of_runs(case.loss, batch, settings)
    for i in range(3):
      one = case.run(batch, **{k: float(v[i]) for k, v in settings.items()})
      np.testing.assert_allclose(together[i], one.loss, rtol=1e-5)


class MetricsTest(parameterized.TestCase):
  @_every_loss
  def test_same_keys_and_finite_scalars(self, case):
    keys = set(loss_batches.GRPO.run(loss_batches.scattered()).metrics)
    if 'p' in case.settings:
      keys |= {'mean/p', 'mean/dlog_dp'}
    for sigma in (0.0, 0.3):
      batch = loss_batches.scattered(sigma)
      for inputs in (batch, loss_batches.Batch(*(x[:0] for x in batch))):
        result = case.run(inputs)
        self.assertEqual(set(result.metrics), keys)
        for name, metric in {'loss': result.loss, **result.metrics}.items():
          is_counts = name.startswith('histogram/')
          shape = (histograms.BINS,) if is_counts else ()
          self.assertEqual(
            (metric.shape, metric.dtype), (shape, np.float32), name
          )
          self.assertTrue(np.all(np.isfinite(metric)), name)


if __name__ == '__main__':
  absltest.main()
