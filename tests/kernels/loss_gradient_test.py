"""Gradients of every loss against finite differences, in float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests import loss_batches
from tests import reference

_every_loss = parameterized.named_parameters(*loss_batches.CASES)


@loss_batches.jit_loss
def _gradient(loss, batch, settings):
  of = lambda logprobs: loss(logprobs, *batch[1:], **settings)[0]
  return jax.value_and_grad(of)(batch.logprobs)


@loss_batches.jit_loss
def _losses(loss, batch, settings):
  of = lambda *batch: loss(*batch, **settings)[0]
  return jax.vmap(of, (0, 0, None, None))(*batch)


@loss_batches.jit_loss
def _slope_in_p(loss, batch, settings, p):
  return jax.grad(lambda p: loss(*batch, **(settings | {'p': p}))[0])(p)


class FiniteDifferencesTest(parameterized.TestCase):
  @_every_loss
  def test_finite_differences(self, case):
    with reference.x64():
      batch = loss_batches.scattered(dtype=np.float64)
      loss, by_logprobs = _gradient(case.loss, batch, case.settings)
      steps = np.reshape([np.eye(30), -np.eye(30)], (60, 5, 6)) / 1e5
      # CISPO's weight is a constant: with both, log pi moves and r does not.
      both = case is loss_batches.CISPO
      moved = batch._replace(
        logprobs=batch.logprobs + steps,
        old_logprobs=batch.old_logprobs + both * steps,
      )
      up, down = jnp.split(_losses(case.loss, moved, case.settings), 2)
      np.testing.assert_allclose(
        by_logprobs, ((up - down) / 2e-5).reshape(5, 6), atol=1e-9
      )
      self.assertEqual(loss.dtype, np.float64)

  @parameterized.product(
    name=('sequence', 'geometric', 'unbiased', 'split', 'token', 'token_log'),
    p=(-2.0, 0.0, 1e-3, 1.0),
  )
  def test_finite_differences_in_the_order(self, name, p):
    case = dict(loss_batches.CASES)[name]
    with reference.x64():
      batch = loss_batches.scattered(dtype=np.float64)
      slope = _slope_in_p(case.loss, batch, case.settings, p)
      up, down = (
        _gradient(case.loss, batch, case.settings | {'p': p + step})[0]
        for step in (1e-5, -1e-5)
      )
      np.testing.assert_allclose(slope, (up - down) / 2e-5, atol=1e-9)
      self.assertNotEqual(slope, 0)


if __name__ == '__main__':
  absltest.main()
