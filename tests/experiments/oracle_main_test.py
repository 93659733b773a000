"""The comparison with the exact gradient from end to end."""

import csv
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[2]


def _main(*arguments):
  return subprocess.run(
    [sys.executable, _ROOT / 'experiments' / 'oracle.py', *arguments],
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


def _read(file):
  with open(file, encoding='utf-8') as stream:
    return list(csv.DictReader(stream))


class ExperimentTest(absltest.TestCase):
  def test_writes_both_tables_and_the_figure(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      result = _main(
        f'--workdir={folder}',
        '--policies=3',
        '--samples=64',
        '--length=2',
        '--sigma=0.1',
        '--sigma=0.4',
        '--p=-1',
        '--p=1',
        '--variant_length=2',
        '--variant_sigma=0.2',
        '--loss=no clip',
        '--loss=product',
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      rows = _read(folder / 'phase.csv')
      # 2 rewards, 2 directions, 2 sigmas, 2 orders.
      self.assertLen(rows, 16)
      self.assertEqual(sum(int(row['best']) for row in rows), 8)
      for row in rows:
        self.assertGreaterEqual(
          int(row['tied']), int(row['best']), 'the best ties with itself'
        )
        self.assertGreaterEqual(float(row['mse_over_best']), 1)
        self.assertAlmostEqual(
          float(row['mse']),
          float(row['bias_square']) + float(row['variance']),
          places=3,
        )
      variants = _read(folder / 'variants.csv')
      products = [row for row in variants if row['loss'] == 'product']
      means = [row for row in variants if row['loss'] == 'no clip']
      self.assertLen(means, 3 * len(products))
      self.assertEqual({row['p'] for row in products}, {''})
      self.assertIn('| share | random | 2 |', result.stdout)
      self.assertIn('| no clip | -1.0 | mean, std | 0.', result.stdout)
      pictures = sorted(file.name for file in folder.glob('*.png'))
      has_plot = importlib.util.find_spec('matplotlib')
      self.assertEqual(
        pictures, ['phase_exact.png', 'phase_share.png'] if has_plot else []
      )

  def test_refuses_a_task_that_is_too_large(self):
    result = _main('--length=40')
    self.assertEqual((result.returncode, result.stdout), (2, ''))
    self.assertRegex(result.stderr, r'^error: vocab_size=3, length=40: .*\n$')


if __name__ == '__main__':
  absltest.main()
