"""The stress experiment from end to end."""

import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np

from hmpo_jax.analysis import overshoot

_ROOT = pathlib.Path(__file__).parents[2]
_SMALL = """
from tests import small
def get_config(length):
  del length
  return small.config(
      num_steps=3,
      optim__qk_clip='weights', optim__tau=0.02, optim__monitor_tau=0.02,
      warm_start__num_steps=1, checkpoint__every=3)
"""


class ExperimentTest(absltest.TestCase):
  def _main(self, folder):
    config = folder / 'small.py'
    config.write_text(_SMALL, encoding='utf-8')
    result = subprocess.run(
      [
        sys.executable,
        str(_ROOT / 'experiments' / 'stress_table.py'),
        f'--config={config}',
        f'--workdir={folder / "table"}',
        '--seeds=1',
        '--nolong',
      ],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    return result.stdout

  def test_runs_both_arms_once_and_tells_what_they_did(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      tables = self._main(folder)
      with open(folder / 'table' / 'stress.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
      self.assertEqual(
        [(row['task'], row['arm']) for row in rows],
        [('short', 'clip'), ('short', 'no clip')],
      )
      for row in rows:
        run = f'{row["task"]}-{row["arm"].replace(" ", "_")}-0'
        file = folder / 'table' / run / 'summary.json'
        summary = json.loads(file.read_text('utf-8'))
        self.assertAlmostEqual(
          float(row['max_logit']), summary['max_logit'], places=3
        )
        self.assertEqual(
          summary['updates_qk_clipped_frac'] > 0, row['arm'] == 'clip'
        )
        self.assertIn(f'| {row["task"]} | {row["arm"]} | 1 |', tables)
      with open(folder / 'table' / 'overshoot.csv', encoding='utf-8') as file:
        parts = list(csv.DictReader(file))
      # 80 updates, of which 79 have one after them, and 8 heads.
      self.assertBetween(len(parts), 1, 632)
      self.assertEqual({float(part['fresh']) for part in parts}, {0, 1})
      for part in parts:
        factors = [float(part[key]) for key in ('left', 'growth', 'spread')]
        self.assertLessEqual(factors[0], 1)
        self.assertGreater(np.prod(factors), 0.9999)
      self.assertIn('| left by the clip |', tables)


class AgainstTauTest(absltest.TestCase):
  def test_only_updates_after_the_first_above_tau_count(self):
    found = overshoot.against_tau(
      np.array([[1.0, 2.0], [60.0, 10.0], [11.0, 11.6], [9.0, 10.0]]), 10.0
    )
    self.assertEqual(found['first_over'], 2)
    self.assertEqual(found['steps_over_tau'], 0.5)
    self.assertEqual(found['below_115'], 0.8)
    self.assertAlmostEqual(found['largest_after'], 1.16)

  def test_nothing_above_tau(self):
    found = overshoot.against_tau(np.ones((2, 3)), 10.0)
    self.assertEqual(tuple(found.values()), (0.0, 6, 1.0, 0.0))

  def test_overshoot_is_a_product_for_heads_above_tau(self):
    before = np.array([[9.0, 12.0], [30.0, 5.0]])
    same = np.array([[9.0, 11.0], [10.0, 6.0]])
    following = np.array([[9.0, 10.0], [12.0, 18.0]])
    found = overshoot.factors(before, same, following, 10.0)
    np.testing.assert_allclose(found, [[1.0, 1.0, 1.2], [0.5, 1.2, 3.0]])


if __name__ == '__main__':
  absltest.main()
