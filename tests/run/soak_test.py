"""Two thousand steps: flat memory, flat time, nothing compiled again."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[2]

# Orbax saves on new threads. Over the many arenas that glibc gives to threads
# the first hundred saves spread 10 MB, which is no leak but looks like one.
_ONE_ARENA = {'MALLOC_ARENA_MAX': '1'}

# Runs main.py and prints, every 100 steps, the resident memory in kB.
_WATCHED = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
from hmpo_jax.run import records as run_records
write = metrics.Writer.write
def watched(writer, step, *args):
  write(writer, step, *args)
  if step % 100 == 0:
    status = pathlib.Path('/proc/self/status').read_text()
    print('watched', step, status.split('VmRSS:')[1].split()[0])
metrics.Writer.write = watched
runpy.run_path(sys.argv[0], run_name='__main__')
"""


class SoakTest(absltest.TestCase):
  @pytest.mark.long
  def test_two_thousand_steps(self):
    with tempfile.TemporaryDirectory() as folder:
      result = subprocess.run(
        [
          sys.executable,
          '-c',
          _WATCHED,
          str(_ROOT / 'experiments' / 'main.py'),
          f'--config={_ROOT}/configs/smoke.py',
          f'--workdir={folder}',
          '--config.num_steps=2000',
          '--config.eval.every=50',
          '--config.checkpoint.every=100',
        ],
        env=os.environ | _ONE_ARENA,
        capture_output=True,
        text=True,
        check=False,
      )
      self.assertEqual(result.returncode, 0, result.stderr[-2000:])
      watched = np.array(
        re.findall(r'watched (\d+) (\d+)', result.stdout), float
      )
      timing = (pathlib.Path(folder) / 'timing.jsonl').read_text('utf-8')
    seconds = np.array([json.loads(x)['step_s'] for x in timing.splitlines()])
    # The first 500 steps fill pools and caches.
    slope = np.polyfit(*watched[watched[:, 0] > 500].T, 1)[0] * 1000 / 1024
    early, late = np.median(seconds[100:600]), np.median(seconds[-500:])
    print(
      f'memory slope {slope:.2f} MB per 1,000 steps, step time '
      f'{early * 1e3:.1f} ms, then {late * 1e3:.1f} ms, slowest after the '
      f'second {seconds[2:].max() * 1e3:.0f} ms'
    )
    self.assertLess(slope, 1)
    self.assertLess(late, 1.25 * early)
    # A compilation takes seconds.
    self.assertLess(seconds[2:].max(), 1)


if __name__ == '__main__':
  absltest.main()
