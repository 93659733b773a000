"""Data parallelism: an update on four devices is the update on one."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[2]


class ShardingTest(absltest.TestCase):
  def test_update_on_four_devices(self):
    done = subprocess.run(
      [sys.executable, '-m', 'tests.sharded_update'],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(found['devices'], 4)
    self.assertEqual(found['clipped'], 1)
    # The maximum is over all rows: those of one device alone would differ.
    self.assertLess(found['max_logits'], 1e-6 * found['largest'])
    self.assertGreater(found['spread_of_quarters'], 1e-2 * found['largest'])
    self.assertLess(found['params'], 2e-4 * found['moved'])


if __name__ == '__main__':
  absltest.main()
