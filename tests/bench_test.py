"""The command of the benchmarks: flags in, files and tables out."""

import contextlib
import csv
import io
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized

from experiments import bench
from hmpo_jax.bench import timing
from tests import small

_ROWS = [
    timing.Row('2x3', 'plain', 'loss', 2, 1.5, 0.25, 1., 0., None, 0.75, 8.,
               2.),
    timing.Row('2x3', 'other', 'loss', 2, 3., 0.5, 2., 0., None, None, None,
               None),
    timing.Row('4x5', 'plain', 'loss', 2, 1., 0., 1., 0., 60., None, None, None)
]

_HELLO = "echo '{\"torch\": \"2\", \"torch_threads\": 2}'"


def _main(**values):
  """Runs the command with these flags; what it hands to `run`."""
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**{'out': tempfile.mkdtemp()} | values):
    with mock.patch.object(bench, 'run') as run:
      bench.main([])
  return run.call_args.args


class BenchTest(parameterized.TestCase):

  def test_files_and_tables_hold_what_was_measured(self):
    suite = timing.Suite(lambda options: _ROWS[:], tuple, ('2x3',), 2)
    printed = io.StringIO()
    options = timing.Options([(2, 3)], 2, small.config())
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder) / 'new' / 'bench'
      with mock.patch.dict(bench.SUITES, {'kernels': suite}):
        with contextlib.redirect_stdout(printed):
          rows = bench.run('kernels', options, out, {'torch': '2.13'})
      about = json.loads((out / 'kernels.json').read_text(encoding='utf-8'))
      with open(out / 'kernels.csv', encoding='utf-8') as file:
        table = list(csv.DictReader(file))
    self.assertEqual(rows, _ROWS)
    self.assertEqual([timing.Row(**row) for row in about['rows']], _ROWS)
    self.assertEqual((about['suite'], about['rounds'], about['torch']),
                     ('kernels', 2, '2.13'))
    self.assertLen(about['load_before'] + about['load_after'], 6)
    for key in ('commit', 'jax', 'device', 'cores'):
      self.assertTrue(about[key], key)
    self.assertLen(table, 3)
    self.assertEqual(tuple(table[0]), timing.Row._fields)
    first, second = printed.getvalue().split('4x5')
    self.assertIn('1.500 ± 0.250', first)
    # Columns without a value are left out.
    self.assertIn('compile s', first)
    self.assertNotIn('GFLOP/s', first)
    self.assertIn('GFLOP/s', second)
    self.assertNotIn('compile s', second)

  @parameterized.parameters(
      ('kernels', [(64, 1024), (256, 4096)], 25),
      ('optimizer', [(12, 512, 512), (12, 1024, 4096)], 7), ('attention', [
          (32, length, 4, 4, 32) for length in (80, 256, 528, 1024)
      ], 9))
  def test_suite_has_its_own_defaults(self, suite, shapes, rounds):
    with mock.patch.object(bench.torch_muon, 'describe') as describe:
      describe.return_value = {'torch_threads': bench.os.cpu_count()}
      name, options, *_ = _main(suite=suite, torch_python=None)
    self.assertEqual((name, options.shapes, options.rounds),
                     (suite, shapes, rounds))

  @parameterized.parameters(('variants', '('), ('variants', 'none'),
                            ('variants', 'optax muon'), ('shapes', []),
                            ('shapes', ['0x4']), ('shapes', ['2x3x4']),
                            ('out', '/dev/null/bench'), ('out', '/proc'),
                            ('torch_python', sys.executable))
  def test_bad_flag_is_one_line_before_anything_is_timed(self, name, value):
    self._check_refused(name, **{name: value})

  @parameterized.parameters(('shapes', ['64x1024']), ('variants', 'p = 1'),
                            ('torch_python', '/no/such/python'),
                            ('torch_python', '/bin/false'))
  def test_bad_flag_of_the_optimizers(self, name, value):
    self._check_refused(name, **{'suite': 'optimizer', name: value})

  def _check_refused(self, name, **values):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
      with self.assertRaises(SystemExit) as stop:
        _main(**values)
    self.assertEqual(stop.exception.code, 2)
    self.assertLen(errors.getvalue().splitlines(), 1)
    self.assertStartsWith(errors.getvalue(), f'error: --{name}=')

  @parameterized.parameters(
      ('exit 1', None, "torch's Muon is left out (no answer)"),
      (_HELLO, 2, None), (_HELLO, 7, 'torch uses 2 threads on 7 cores'))
  def test_torch_is_the_running_interpreters(self, script, cores, line):
    python = pathlib.Path(tempfile.mkdtemp()) / 'python'
    python.write_text(f'#!/bin/sh\n{script}\n', encoding='utf-8')
    python.chmod(0o755)
    errors = io.StringIO()
    with mock.patch.object(bench.sys, 'executable', str(python)):
      with mock.patch.object(bench.os, 'cpu_count', lambda: cores):
        with contextlib.redirect_stderr(errors):
          _, options, _, about = _main(suite='optimizer')
    self.assertEqual(bool(about), bool(cores))
    self.assertEqual(options.torch_python, str(python) if cores else None)
    self.assertLen(errors.getvalue().splitlines(), 1 if line else 0)
    self.assertIn(line or '', errors.getvalue())


if __name__ == '__main__':
  absltest.main()
