"""The command of the benchmarks: flags in, files and tables out."""

import contextlib
import csv
import functools
import io
import json
import pathlib
import platform
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax.numpy as jnp

from experiments.bench import main as bench
from experiments.bench import peers
from experiments.bench import report
from experiments.bench import timing
from experiments.bench import workloads
from tests import small

_ROWS = [
  timing.Row(
    '2x3', 'plain', 'loss', 2, 1.5, 0.25, 1.0, 0.0, None, 0.75, 8.0, 2.0
  ),
  timing.Row(
    '2x3', 'other', 'loss', 2, 3.0, 0.5, 2.0, 0.0, None, None, None, None
  ),
  timing.Row(
    '4x5', 'plain', 'loss', 2, 1.0, 0.0, 1.0, 0.0, 60.0, None, None, None
  ),
]

_HELLO = 'echo \'{"torch": "2", "torch_threads": 2}\''


def _main(**values):
  """Runs the command with these flags; what it hands to `run`."""
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**{'out': tempfile.mkdtemp()} | values):
    with mock.patch.object(bench, 'run') as run:
      bench.main([])
  return run.call_args.args


def _describe(peer, python):
  """Finds one of the two in the running interpreter."""
  if python == sys.executable and peer == 'tunix':
    raise ChildProcessError('no tunix')
  if python == '/bad':
    raise FileNotFoundError('no such file')
  return {peer: '1.2', 'threads': 2}


class BenchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Here JAX has counted its devices already.
    self.enter_context(mock.patch.object(bench.run_axis, 'one_device_per_core'))

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
    self.assertEqual(
      (about['suite'], about['rounds'], about['torch']), ('kernels', 2, '2.13')
    )
    self.assertLen(about['load_before'] + about['load_after'], 6)
    for key in ('commit', 'device', 'platform', 'cores'):
      self.assertTrue(about[key], key)
    for key in ('jax', 'jaxlib', 'numpy'):
      self.assertTrue(about['versions'][key], key)
    self.assertEqual(about['versions']['python'], platform.python_version())
    self.assertIsNone(about['limits'])
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
    ('optimizer', [(12, 512, 512), (12, 1024, 4096)], 7),
    (
      'attention',
      [(32, length, 4, 4, 32) for length in (80, 256, 528, 1024)],
      9,
    ),
  )
  def test_suite_has_its_own_defaults(self, suite, shapes, rounds):
    with mock.patch.object(bench.torch_muon, 'describe') as describe:
      describe.return_value = {'torch_threads': bench.os.cpu_count()}
      name, options, *_ = _main(suite=suite, torch_python=None)
    self.assertEqual(
      (name, options.shapes, options.rounds), (suite, shapes, rounds)
    )

  def test_columns_of_steps(self):
    row = _ROWS[0]._replace(
      tokens_per_s=123.4,
      of_limit=0.5,
      peak_mb=77.0,
      to_trl=0.625,
      to_trl_spread=0.0625,
      to_faster=0.75,
      to_faster_spread=0.0,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      report.show({}, [row])
    for cell in (
      'to trl',
      '0.625 ± 0.062',
      'to the faster',
      '0.750 ± 0.000',
      'tokens/s',
      '123.4',
      'of limit',
      '0.50',
      'peak MB',
      '77.00',
    ):
      self.assertIn(cell, printed.getvalue())
    self.assertNotIn('to tunix', printed.getvalue())

  def test_limits_are_measured_for_suites_that_are_held_to_them(self):
    found = timing.Limits(1.0, 2.0, 'matmul')
    seen = []
    for has_limits in True, False:
      suite = timing.Suite(
        lambda options: seen.append(options.limits) or _ROWS[:],
        tuple,
        ('2x3',),
        2,
        has_limits=has_limits,
      )
      out = pathlib.Path(tempfile.mkdtemp())
      with mock.patch.dict(bench.SUITES, {'step': suite}):
        with mock.patch.object(bench.limits, 'measure', lambda: found):
          with contextlib.redirect_stdout(io.StringIO()):
            bench.run('step', timing.Options([], 2, small.config()), out, {})
      about = json.loads((out / 'step.json').read_text(encoding='utf-8'))
      self.assertEqual(about['limits'], found._asdict() if has_limits else None)
    self.assertEqual(seen, [found, None])

  def test_all_are_run_in_turn(self):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(suite='all', out=tempfile.mkdtemp(), peers=True):
      with mock.patch.object(bench, 'run') as run:
        with mock.patch.object(bench.torch_muon, 'describe') as describe:
          describe.return_value = {'torch_threads': bench.os.cpu_count()}
          with mock.patch.object(peers, 'describe', _describe):
            with contextlib.redirect_stderr(io.StringIO()):
              bench.main([])
    of_all = {call.args[0]: call.args[1:] for call in run.call_args_list}
    self.assertEqual(list(of_all), list(bench.SUITES))
    for name, (options, _, about) in of_all.items():
      self.assertEqual(bool(options.torch_python), name == 'optimizer')
      self.assertEqual(bool(options.peers), name == 'step')
      self.assertEqual('peers' in about, name == 'step')
      self.assertEqual(options.variants, '.*')

  def test_peers_that_are_there_are_timed_and_a_line_names_the_others(self):
    errors = io.StringIO()
    with mock.patch.object(peers, 'describe', _describe):
      with contextlib.redirect_stderr(errors):
        _, options, _, about = _main(suite='step', peers=True)
      self.assertEqual(options.peers, {'trl': sys.executable})
      self.assertEqual(about, {'peers': {'trl': {'trl': '1.2', 'threads': 2}}})
      self.assertEqual(
        errors.getvalue(),
        'bench: tunix is left out (no tunix): see --tunix_python\n',
      )
      _, options, *_ = _main(suite='step', peers=True, tunix_python='/there')
    self.assertEqual(options.peers, {'trl': sys.executable, 'tunix': '/there'})
    _, options, _, about = _main(suite='step')
    self.assertEqual((options.peers, about), (None, {}))

  def test_workloads_by_their_names(self):
    _, options, *_ = _main(suite='step', shapes=['W-long'])
    self.assertEqual(options.shapes, [workloads.WORKLOADS['W-long']])
    _, options, *_ = _main(suite='rollout')
    self.assertEqual(options.shapes, list(workloads.WORKLOADS.values()))

  @parameterized.parameters(
    ('peers', {'peers': True}),
    ('tunix_python', {'suite': 'step', 'tunix_python': '/x'}),
    ('trl_python', {'suite': 'step', 'trl_python': '/bad', 'peers': True}),
    ('shapes', {'suite': 'step', 'shapes': ['W-none']}),
    ('shapes', {'suite': 'all', 'shapes': ['2x3']}),
    ('variants', {'suite': 'all', 'variants': 'map'}),
    ('variants', {'suite': 'runs', 'variants': 'trl'}),
  )
  def test_bad_flag_of_the_workloads(self, name, values):
    with mock.patch.object(peers, 'describe', _describe):
      self._check_refused(name, **values)

  def test_trace_of_each_case_and_its_table(self):
    folder, printed = tempfile.mkdtemp(), io.StringIO()
    _, options, *_ = _main(suite='runs', profile=folder)
    product = timing.compiled(lambda x: x @ x, jnp.ones((256, 256)))
    call = functools.partial(product.call, jnp.ones((256, 256)))
    here = timing.Case('map', '8 runs', timing.wall_clock(call), product)
    elsewhere = here._replace(variant='trl', is_here=False)
    with contextlib.redirect_stdout(printed):
      options.timed('W/runs, 8', [here, elsewhere])
    self.assertEqual(
      [path.name for path in pathlib.Path(folder).iterdir()],
      ['runs-W_runs_8-map-8_runs'],
    )
    self.assertIn('runs-W_runs_8-map-8_runs', printed.getvalue())
    self.assertIn('jit__lambda', printed.getvalue())
    self.assertIsNone(_main(suite='runs')[1].examine)

  @parameterized.parameters(
    ('variants', '('),
    ('variants', 'none'),
    ('variants', 'optax muon'),
    ('shapes', []),
    ('shapes', ['0x4']),
    ('shapes', ['2x3x4']),
    ('out', '/dev/null/bench'),
    ('out', '/proc'),
    ('torch_python', sys.executable),
  )
  def test_bad_flag_is_one_line_before_anything_is_timed(self, name, value):
    self._check_refused(name, **{name: value})

  @parameterized.parameters(
    ('shapes', ['64x1024']),
    ('variants', 'p = 1'),
    ('torch_python', '/no/such/python'),
    ('torch_python', '/bin/false'),
  )
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
    (_HELLO, 2, None),
    (_HELLO, 7, 'torch uses 2 threads on 7 cores'),
  )
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
