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
    result = subprocess.run([
        sys.executable,
        str(_ROOT / 'experiments' / 'stress_table.py'), f'--config={config}',
        f'--workdir={folder / "table"}', '--seeds=1', '--nolong'
    ],
                            env=os.environ | {'PYTHONPATH': str(_ROOT)},
                            capture_output=True,
                            text=True,
                            check=False)
    self.assertEqual(result.returncode, 0, result.stderr)
    return result.stdout

  def test_runs_both_arms_once_and_tells_what_they_did(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      tables = self._main(folder)
      with open(folder / 'table' / 'stress.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
      self.assertEqual([(row['task'], row['arm']) for row in rows],
                       [('short', 'clip'), ('short', 'no clip')])
      for row in rows:
        run = f'{row["task"]}-{row["arm"].replace(" ", "_")}-0'
        file = folder / 'table' / run / 'summary.json'
        summary = json.loads(file.read_text('utf-8'))
        self.assertAlmostEqual(
            float(row['max_logit']), summary['max_logit'], places=3)
        self.assertEqual(summary['updates_qk_clipped_frac'] > 0,
                         row['arm'] == 'clip')
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


if __name__ == '__main__':
  absltest.main()
