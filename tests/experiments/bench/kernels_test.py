"""The suite of losses: what it times; no time is asserted."""

import functools
import types
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp

from experiments.bench import kernels
from experiments.bench import timing
from tests import small

_VARIANTS = {
  'plain GSPO',
  'p = 1',
  'p = 0',
  'p = -1',
  'p = -0.5',
  'p = -1, gradient in p',
  'p = 0, p_grad = -1',
  'p = -1, p_clip = 0',
  'p = -1, center geometric',
  'p = -1, center unbiased',
  'p = -1, clip token',
  'p = -1, clip token_log',
  'arithmetic_harmonic',
  'gspo_token',
  'grpo',
  'cispo',
  'sapo',
  'reinforce',
}


def _programs(_):
  """With a step that does nothing: the real one takes long to compile."""
  return types.SimpleNamespace(
    task=types.SimpleNamespace(response_len=6),
    warm_params=dict,
    hparams=(),
    first_state=lambda params: params,
    step=lambda state, measure, hparams: (state, {'measured': measure}),
  )


class KernelsTest(absltest.TestCase):
  def test_every_loss_has_value_and_metrics(self):
    variants = kernels.loss_variants()
    self.assertContainsSubset(_VARIANTS, variants)
    batch = (
      jnp.ones((2, 3)),
      jnp.ones((2, 3)),
      jnp.ones(2),
      jnp.ones((2, 3), bool),
    )
    for name, (loss, p) in variants.items():
      value, metrics = jax.eval_shape(functools.partial(loss, p=p), *batch)
      self.assertEqual(value.shape, (), name)
      self.assertEqual(bool(metrics), name != 'plain GSPO')

  def test_rows_of_losses_and_of_a_step(self):
    options = timing.Options([(2, 3)], 2, small.config(), variants='p = -?1')
    with mock.patch.object(kernels.programs_lib, 'Programs', _programs):
      rows = kernels.measure(options)
    of_losses = [row for row in rows if row.shape == '2x3']
    self.assertEqual(
      [(row.variant, row.mode) for row in of_losses],
      [('plain GSPO', 'loss')]
      + [
        (name, mode)
        for name in ('p = 1', 'p = -1')
        for mode in ('loss', 'loss and metrics')
      ],
    )
    self.assertEqual(of_losses[0].ratio, 1)
    of_step = rows[len(of_losses) :]
    self.assertEqual(
      {row.shape for row in of_step}, {'step of 4 updates of 16x6'}
    )
    self.assertEqual(
      [row.variant for row in of_step], ['train step', 'p = 1', 'p = -1']
    )
    for row in rows:
      self.assertGreater(row.ms, 0)
      self.assertGreater(row.ratio, 0)
      self.assertEqual(row.compile_s is None, row.variant == 'train step')
    # Orders of one loss share a program.
    self.assertEqual(of_losses[1].compile_s, of_losses[3].compile_s)


if __name__ == '__main__':
  absltest.main()
