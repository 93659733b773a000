"""The comparison with other libraries where none of them is installed."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[2]


class ParityTest(absltest.TestCase):
  def test_says_in_one_line_that_nothing_can_be_compared(self):
    # Modules of their names that hold nothing, in front of any that do.
    empty = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, empty)
    for name in ('verl', 'trl', 'tunix'):
      (empty / f'{name}.py').touch()
    result = subprocess.run(
      [sys.executable, _ROOT / 'experiments' / 'parity.py'],
      capture_output=True,
      check=False,
      text=True,
      env=os.environ | {'PYTHONPATH': f'{empty}{os.pathsep}{_ROOT}'},
    )
    self.assertEqual((result.returncode, result.stdout), (2, ''))
    self.assertRegex(
      result.stderr,
      r'^error: no other library can be imported: .*verl.*trl.*tunix.*\n$',
    )


if __name__ == '__main__':
  absltest.main()
