"""Many runs in one program are the runs by themselves."""

import functools
import json
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from hmpo_jax.training import learner
from hmpo_jax.training import run_axis
from tests import small

_NO = jnp.asarray(False)
_VARIANTS = ((-1.0, 0), (0.5, 1), (2.0, 0))


@functools.cache
def _starts():
  """Static part, and hyperparameters and first state of each variant."""
  starts = [small.start(small.config(loss__p=p), seed) for p, seed in _VARIANTS]
  return starts[0][0], [(state, hparams) for _, hparams, state in starts]


@functools.cache
def alone():
  """What each variant comes to by itself."""
  static, variants = _starts()
  step = jax.jit(functools.partial(learner.train_step, static))
  return [step(*variant, _NO) for variant in variants]


def grid(how):
  """What all variants come to in one program."""
  static, variants = _starts()
  step = functools.partial(learner.train_step, static)
  many = jax.jit(run_axis.over_runs(step, how))
  return many(*run_axis.stack(variants), _NO)


class OverRunsTest(parameterized.TestCase):
  def test_one_by_one_a_run_has_the_bits_of_a_single_run(self):
    state, metrics = grid('map')
    for i, (one, one_metrics) in enumerate(alone()):
      chex.assert_trees_all_equal(
        run_axis.take((state.params, metrics), i), (one.params, one_metrics)
      )

  def test_the_backend_chooses(self):
    double = lambda state, hparams: state + hparams
    text = lambda how: str(
      jax.make_jaxpr(run_axis.over_runs(double, how))(*[jnp.ones(4)] * 2)
    )
    self.assertEqual(text('auto'), text('map'))
    self.assertIn('scan', text('map'))
    self.assertNotIn('scan', text('vmap'))

  @parameterized.parameters('map', 'vmap')
  def test_size_of_the_program_hangs_not_on_the_number_of_runs(self, how):
    static, variants = _starts()
    many = jax.jit(
      run_axis.over_runs(functools.partial(learner.train_step, static), how)
    )
    lines = [
      many.lower(*run_axis.stack(variants[:1] * num), _NO).as_text().count('\n')
      for num in (2, 16)
    ]
    self.assertAlmostEqual(*lines, delta=0.01 * lines[0])

  def test_unknown_choice(self):
    with self.assertRaisesRegex(ValueError, "how='pmap': must be one of auto,"):
      run_axis.over_runs(lambda state, hparams: state, 'pmap')

  def test_spread_over_devices(self):
    done = subprocess.run(
      [sys.executable, '-m', 'tests.spread_runs'],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = json.loads(done.stdout)
    self.assertEqual(found['devices'], 2)
    self.assertTrue(found['stays'])
    self.assertEqual(found['programs'], 1)
    self.assertTrue(found['equal'])


if __name__ == '__main__':
  absltest.main()
