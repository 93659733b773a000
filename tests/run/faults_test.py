"""Runs that are killed, signalled, starved of disk, and doubled.

Whatever happens to it, a run that is started again ends in the bytes of an
undisturbed one. The test that is marked long kills 200 times.
"""

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_MAIN = str(_ROOT / 'experiments' / 'main.py')
_SIGNALLED_MAIN = str(_ROOT / 'tests' / 'signalled_main.py')
_KILLED_MAIN = str(_ROOT / 'tests' / 'killed_main.py')
# Starts Python again where no file may grow beyond a number of bytes.
_LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_FILES = ('metrics.jsonl', 'metrics.csv', 'summary.json')


def _start(command, *, limit=None, stream=subprocess.PIPE, **overrides):
  """A process of the smoke run, with keys overridden."""
  overrides |= {'mechanism__every': 0}  # compiles in two thirds of the time
  arguments = [f'--config={_ROOT}/configs/smoke.py'] + [
    f'--config.{key.replace("__", ".")}={value}'
    for key, value in overrides.items()
  ]
  if limit:
    command = ('-c', _LIMITED, str(limit), *command)
  return subprocess.Popen(
    [sys.executable, *command, *arguments],
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    stdout=stream,
    stderr=stream,
    text=True,
  )


class FaultsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.base = pathlib.Path(tempfile.mkdtemp())
    cls.addClassCleanup(shutil.rmtree, cls.base)
    # What the run holds may not depend on being watched.
    process = _start(cls._killed_command(cls.base / 'whole', 0, 0))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    found = re.search(r'events (\d+)', errors)
    assert found, errors
    cls.num_events = int(found[1])

  @staticmethod
  def _killed_command(workdir, event, delay_ms):
    return (
      _KILLED_MAIN,
      str(event),
      str(delay_ms),
      str(workdir),
      f'--workdir={workdir}',
    )

  def _run(self, workdir, **options):
    process = _start((_MAIN, f'--workdir={workdir}'), **options)
    output, errors = process.communicate()
    return process.returncode, output, errors

  def _assert_same_bytes(self, workdir, undisturbed='whole'):
    for name in _FILES:
      self.assertEqual(
        (workdir / name).read_bytes(),
        (self.base / undisturbed / name).read_bytes(),
        name,
      )

  def _kill(self, times, seed):
    """Kills runs until `times` are dead; each that ends is compared."""
    rng = random.Random(seed)
    killed, runs = 0, 0
    workdir = self.base / f'killed_{seed}'
    while killed < times:
      process = _start(
        self._killed_command(
          workdir, rng.randint(1, self.num_events), rng.choice([0, 0, 5, 50])
        )
      )
      _, errors = process.communicate()
      self.assertIn(process.returncode, (0, -signal.SIGKILL), errors)
      self.assertNotIn('Traceback', errors)
      killed += process.returncode != 0
      if process.returncode == 0:
        self._assert_same_bytes(workdir)
        shutil.rmtree(workdir)
        runs += 1
    self.assertEqual(self._run(workdir)[0], 0)
    self._assert_same_bytes(workdir)
    return runs + 1

  def test_killed_runs_resume_to_the_same_bytes(self):
    self.assertGreater(self.num_events, 50)
    self._kill(5, seed=0)

  @pytest.mark.long
  def test_two_hundred_kills(self):
    for seed in range(1, 11):
      runs = self._kill(20, seed)
      print(f'{20 * seed} kills, this seed {runs} runs, all bytes equal')

  def test_signal_ends_with_75_and_the_run_goes_on(self):
    judge = self.base / 'judge.py'
    judge.write_text(
      'def judge(_, responses):\n'
      '  return [len(set(r)) / 6 for r in responses]\n'
    )
    options = {'reward__function': f'{judge}:judge', 'num_steps': 9}
    self.assertEqual(self._run(self.base / 'judged', **options)[0], 0)
    workdir = self.base / 'signalled'
    # The one run meets them all, one after the other.
    for phase, name in (
      ('compile', 'SIGINT'),
      ('rollout', 'SIGTERM'),
      ('update', 'SIGINT'),
      ('save', 'SIGTERM'),
    ):
      with self.subTest(phase):
        process = _start(
          (_SIGNALLED_MAIN, phase, name, f'--workdir={workdir}'), **options
        )
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 75, errors)
        self.assertIn('the same command goes on', errors)
        told = re.search(r'interrupted: waits for (.*); a second', errors)
        # A save goes on while the next step begins.
        self.assertRegex(
          told[1],
          {
            'compile': 'step 1 and its checkpoint, while programs compile',
            'save': r'^(the checkpoint of step 6|step 7 and its checkpoint)$',
          }.get(phase, 'its checkpoint'),
        )
        self.assertNotIn('Traceback', errors)
    self.assertEqual(self._run(workdir, **options)[0], 0)
    self._assert_same_bytes(workdir, 'judged')

  def test_reader_that_goes_away_ends_nothing(self):
    workdir = self.base / 'unread'
    for _ in range(2):  # the run, and then its summary
      reader, writer = os.pipe()
      os.close(reader)
      process = _start((_MAIN, f'--workdir={workdir}'), stream=writer)
      os.close(writer)
      self.assertEqual(process.wait(), 0)
    self._assert_same_bytes(workdir)

  def test_full_disk_is_one_line_and_nothing_is_lost(self):
    workdir = self.base / 'full'
    for limit in (300, 20_000):
      code, _, errors = self._run(workdir, limit=limit)
      self.assertEqual(code, 75, errors)
      # Threads of Tensorstore may print around our line, before it too.
      self.assertRegex(errors, 'error: .*File too large.*make room')
    self.assertEqual(self._run(workdir)[0], 0)
    self._assert_same_bytes(workdir)

  def test_second_process_on_a_folder_refuses(self):
    workdir = self.base / 'doubled'
    first = _start((_MAIN, f'--workdir={workdir}'))
    while not (workdir / 'config.json').exists():
      self.assertIsNone(first.poll())
      time.sleep(0.01)
    code, _, errors = self._run(workdir)
    self.assertEqual(code, 2, errors)
    self.assertIn('another process is writing', errors)
    self.assertLen(errors.strip().splitlines(), 1)
    self.assertEqual(first.wait(), 0)
    first.communicate()
    self._assert_same_bytes(workdir)

  def test_run_folder_that_is_a_file(self):
    file = self.base / 'file'
    file.write_text('mine')
    code, _, errors = self._run(file)
    self.assertEqual(code, 2, errors)
    self.assertLen(errors.strip().splitlines(), 1)
    self.assertEqual(file.read_text(), 'mine')


if __name__ == '__main__':
  absltest.main()
