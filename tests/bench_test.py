"""The benchmark runs and writes what it measured; no time is asserted."""

import contextlib
import csv
import functools
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from experiments import bench
from tests import small

_VARIANTS = {
    'plain GSPO', 'p = 1', 'p = 0', 'p = -1', 'p = -0.5',
    'p = -1, gradient in p', 'p = 0, p_grad = -1', 'p = -1, p_clip = 0',
    'p = -1, center geometric', 'p = -1, center unbiased', 'p = -1, clip token',
    'p = -1, clip token_log', 'arithmetic_harmonic', 'gspo_token', 'grpo',
    'cispo', 'sapo', 'reinforce'
}


def _programs(_):
  """With a step that does nothing: the real one takes long to compile."""
  return types.SimpleNamespace(
      task=types.SimpleNamespace(response_len=6),
      warm_params=dict,
      first_state=lambda params: params,
      step=lambda state, measure: (state, {
          'measured': measure
      }))


class BenchTest(parameterized.TestCase):

  def test_every_loss_has_value_and_metrics(self):
    variants = bench.loss_variants()
    self.assertContainsSubset(_VARIANTS, variants)
    batch = jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2), jnp.ones((2, 3),
                                                                      bool)
    for name, (loss, p) in variants.items():
      value, metrics = jax.eval_shape(functools.partial(loss, p=p), *batch)
      self.assertEqual(value.shape, (), name)
      self.assertEqual(bool(metrics), name != 'plain GSPO')

  def test_suite_writes_what_it_measured(self):
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder) / 'new' / 'bench'
      with mock.patch.object(bench.programs_lib, 'Programs', _programs):
        bench.run('kernels', [(2, 3)], 2, 'p = -?1', out, small.config())
      about = json.loads((out / 'kernels.json').read_text(encoding='utf-8'))
      with open(out / 'kernels.csv', encoding='utf-8') as file:
        table = list(csv.DictReader(file))
    self.assertEqual((about['suite'], about['rounds']), ('kernels', 2))
    self.assertLen(about['load_before'] + about['load_after'], 6)
    rows = about['rows']
    self.assertLen(table, len(rows))
    of_losses = [row for row in rows if row['shape'] == '2x3']
    self.assertEqual([(row['variant'], row['mode']) for row in of_losses],
                     [('plain GSPO', 'loss')] +
                     [(name, mode)
                      for name in ('p = 1', 'p = -1')
                      for mode in ('loss', 'loss and metrics')])
    self.assertEqual(of_losses[0]['ratio'], 1)
    of_step = [
        row['variant']
        for row in rows
        if row['shape'] == 'step of 4 updates of 16x6'
    ]
    self.assertEqual(of_step, ['train step', 'p = 1', 'p = -1'])
    for row in rows:
      self.assertGreater(row['ms'], 0)
      self.assertGreater(row['ratio'], 0)

  @parameterized.parameters(('variants', '('), ('variants', 'none'),
                            ('shapes', []), ('shapes', ['0x4']),
                            ('out', '/dev/null/bench'))
  def test_bad_flag_is_one_line_before_anything_is_timed(self, name, value):
    errors = io.StringIO()
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**{'out': tempfile.mkdtemp()} | {name: value}):
      with contextlib.redirect_stderr(errors):
        with self.assertRaises(SystemExit) as stop:
          bench.main([])
    self.assertEqual(stop.exception.code, 2)
    self.assertLen(errors.getvalue().splitlines(), 1)
    self.assertStartsWith(errors.getvalue(), f'error: --{name}=')


if __name__ == '__main__':
  absltest.main()
