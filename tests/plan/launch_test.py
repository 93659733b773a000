"""Workers of a plan: what they are given, and what becomes of their faults."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.plan import folder
from hmpo_jax.plan import launch
from hmpo_jax.plan import states
from hmpo_jax.plan import tuning
from hmpo_jax.run import failure
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder

_WORKER = str(pathlib.Path(__file__).parent.with_name('standin_worker.py'))


def _runs(orders, **overrides):
  return [
    design.Run(
      'task',
      f'p{order}-{i}',
      i,
      design.folder_of('task', f'p{order}', i),
      {'loss.p': float(order), 'seed': i, 'num_steps': 2} | overrides,
    )
    for i, order in enumerate(orders)
  ]


class LaunchTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    scratch = tempfile.TemporaryDirectory()
    self.addCleanup(scratch.cleanup)
    self.folder = pathlib.Path(scratch.name)
    self.enterContext(
      mock.patch.object(launch, 'COMMAND', [sys.executable, _WORKER])
    )

  def _launcher(self, num_workers=1, max_runs=64):
    lock = self.enterContext(folder.claimed(self.folder))
    return launch.Launcher(self.folder, lock, num_workers, max_runs)

  def _describe(self, runs):
    """Writes config.json, as a run does before all else."""
    for run in runs:
      config = design.configuration(run, str(self.folder / folder.WARM_STARTS))
      path = self.folder / run.folder
      path.mkdir(parents=True, exist_ok=True)
      empty = {'inputs': {}, 'settings': {}, 'versions': {}}
      files.write_json(
        path / run_folder.CONFIG, run_folder.described_config(config) | empty
      )

  def _train(self, runs, **options):
    launcher = self._launcher(**options)
    launcher.train(runs)
    return launcher.failures

  def _made(self, run):
    """How often a run was made."""
    file = self.folder / run.folder / 'made'
    return int(file.read_text()) if file.exists() else 0

  def test_all_runs_are_made_once(self):
    runs = _runs([0, 1, 2, -1, -2])
    self.assertEmpty(self._train(runs, num_workers=2))
    self.assertEqual([self._made(run) for run in runs], [1] * 5)

  def test_what_is_finished_stays(self):
    runs = _runs([0, 1])
    self._describe(runs)
    launcher = self._launcher()
    launcher.train(runs[:1])
    launcher.train(runs)
    self.assertEqual([self._made(run) for run in runs], [1, 1])

  def test_plan_of_more_steps_goes_on_with_what_is_finished(self):
    runs, longer = _runs([0, 1]), _runs([0, 1], num_steps=3)
    self._describe(runs)
    launcher = self._launcher()
    launcher.train(runs)
    launcher.refuse_others(longer)
    launcher.train(longer)
    self.assertEqual([self._made(run) for run in longer], [2, 2])
    self._describe(longer)
    with self.assertRaisesRegex(config_lib.ConfigError, 'made shorter'):
      launcher.train(runs)

  def test_grid_of_another_length_is_refused_before_a_worker_starts(self):
    run = _runs([0])[0]
    run = run._replace(folder=pathlib.PurePath(tuning.FOLDER, run.folder))
    self._describe([run])
    longer = run._replace(overrides=run.overrides | {'num_steps': 3})
    with self.assertRaisesRegex(config_lib.ConfigError, 'chosen by runs'):
      self._train([longer])
    self.assertEqual(self._made(run), 0)

  def test_numerical_failure_is_named_kept_and_not_tried_again(self):
    runs = _runs([0, 9, 1])
    self._describe(runs)
    launcher = self._launcher()
    for _ in range(2):
      launcher.train(runs)
      self.assertEqual(launcher.failures, {'task/p9/seed-1': 'not a number'})
      # The group says that a failure is final, not this stand-in.
      failure.fail(self.folder / runs[1].folder, 'not a number', 1, True)
    self.assertEqual([self._made(run) for run in runs], [1, 0, 1])

  def test_run_that_kills_its_process_fails_alone(self):
    runs = _runs([0, 1, 8, 2, 3])
    failures = self._train(runs)
    self.assertEqual(
      failures, {'task/p8/seed-2': 'its process was killed by SIGKILL'}
    )
    self.assertEqual([self._made(run) for run in runs], [1, 1, 0, 1, 1])
    failed = json.loads(
      (self.folder / runs[2].folder / 'failed.json').read_text()
    )
    self.assertFalse(failed['final'])  # the next command tries it again

  def test_last_words_of_a_process_are_its_reason(self):
    (reason,) = self._train(_runs([7])).values()
    self.assertEqual(reason, 'its process ended with code 5: out of order')
    self.assertIn('out of order', (self.folder / launch.LOG).read_text())

  def test_bad_overrides_fail_by_name_and_leave_the_others(self):
    good, bad = _runs([0]), _runs([1], **{'loss.clip': 'none'})
    failures = self._train(good + bad)
    self.assertEqual(list(failures), ['task/p1/seed-0'])
    self.assertIn('config.loss.clip', failures['task/p1/seed-0'])
    self.assertEqual(self._made(good[0]), 1)

  def test_mended_overrides_run(self):
    launcher = self._launcher()
    launcher.train(_runs([1], **{'loss.clip': 'none'}))
    launcher.failures.clear()
    launcher.train(_runs([1]))
    self.assertEmpty(launcher.failures)
    self.assertEqual(self._made(_runs([1])[0]), 1)

  def test_folder_of_another_configuration_is_refused(self):
    run = _runs([1])[0]
    other = design.configuration(
      run._replace(overrides=run.overrides | {'loss.p': 0.5}), 'x'
    )
    path = self.folder / run.folder
    path.mkdir(parents=True)
    files.write_json(path / run_folder.CONFIG, run_folder.describe(other))
    with self.assertRaisesRegex(config_lib.ConfigError, 'config.loss.p: 0.5'):
      self._train([run])
    self.assertEqual(self._made(run), 0)

  def test_records_that_are_lost_make_a_run_unfinished(self):
    run = _runs([1])[0]
    self._describe([run])
    self.assertEmpty(self._train([run]))
    self.assertTrue(states.is_finished(self.folder / run.folder, 2))
    (self.folder / run.folder / 'metrics.jsonl').write_text('{}\n')
    self.assertFalse(states.is_finished(self.folder / run.folder, 2))

  def test_folder_that_can_not_be_opened_is_no_failure(self):
    runs = _runs([5, 1])
    launcher = self._launcher()
    with self.assertRaisesRegex(config_lib.ConfigError, 'p5/seed-0: another'):
      launcher.train(runs)
    self.assertEmpty(launcher.failures)
    self.assertFalse((self.folder / runs[0].folder / 'failed.json').exists())
    self.assertEqual(self._made(runs[1]), 1)

  def test_interruption_asks_the_workers_and_is_told(self):
    launcher = self._launcher()
    self._signal_when_running(launcher)
    errors = io.StringIO()
    with (
      contextlib.redirect_stderr(errors),
      self.assertRaises(base.Interrupted),
    ):
      launcher.train(_runs([6]))
    self.assertEqual(
      errors.getvalue().splitlines()[-1],
      'interrupted: waits for a step of 1 run, to be saved; a second signal '
      'ends it at once',
    )
    self.assertEmpty(launcher.failures)

  def _signal_when_running(self, launcher):

    def signal_():
      while not launcher._workers:
        time.sleep(0.05)
      time.sleep(0.5)  # until its handler stands
      os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_)
    thread.start()
    self.addCleanup(thread.join)

  def test_killed_probe_is_told(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'killed by SIGKILL'):
      self._launcher().probe([(_runs([8])[0], False)])

  def test_worker_that_never_reads_its_request_is_told(self):
    run = _runs([0], **{'task.prompts': 'x' * 200_000})[0]  # more than a pipe
    with mock.patch.object(launch, 'COMMAND', ['false']):
      with self.assertRaisesRegex(config_lib.ConfigError, 'ended with code 1'):
        self._launcher().probe([(run, False)])

  def test_groups_have_one_program_and_no_idle_worker(self):
    runs = _runs([0, 1, 2, 3]) + _runs([4], **{'loss.clip': 'token'})
    pending, failures = states.ready(runs, self.folder)
    self.assertEmpty(failures)
    jobs = launch.jobs_of(pending, self.folder, 1, 64)
    self.assertEqual([len(job.runs) for job in jobs], [4, 1])
    jobs = launch.jobs_of(pending, self.folder, 2, 64)
    self.assertEqual([len(job.runs) for job in jobs], [2, 2, 1])
    jobs = launch.jobs_of(pending, self.folder, 1, 3)
    self.assertEqual([len(job.runs) for job in jobs], [2, 2, 1])

  def test_runs_that_have_come_equally_far_go_together(self):
    runs = _runs([0, 1, 2])
    self._describe(runs)
    self._save(runs[1], '50', '9')
    # A save that was killed, one without its seal, and files of the user's.
    self._save(runs[2], '50.orbax-checkpoint-tmp', '060', '\u00b2', '7 (copy)')
    (self.folder / runs[2].folder / 'checkpoints' / '70').mkdir()
    pending, _ = states.ready(runs, self.folder)
    jobs = launch.jobs_of(pending, self.folder, 1, 64)
    self.assertEqual(
      [[run.name for run in job.runs] for job in jobs],
      [['task/p0/seed-0', 'task/p2/seed-2'], ['task/p1/seed-1']],
    )

  def _save(self, run, *names):
    """Makes folders with a seal among the checkpoints of a run."""
    checkpoints = self.folder / run.folder / 'checkpoints'
    for name in names:
      (checkpoints / name).mkdir(parents=True)
      (checkpoints / f'{name}.sha256.json').touch()


class ClaimTest(absltest.TestCase):
  def test_a_plan_waits_for_the_workers_of_one_that_was_killed(self):
    with tempfile.TemporaryDirectory() as scratch:
      path = pathlib.Path(scratch)
      with folder.claimed(path) as lock:
        worker = subprocess.Popen(['sleep', '1'], pass_fds=(lock,))
      start = time.monotonic()
      with folder.claimed(path):
        self.assertIsNotNone(worker.poll())
      self.assertGreater(time.monotonic() - start, 0.3)

  def test_a_plan_that_goes_on_is_told(self):
    with tempfile.TemporaryDirectory() as scratch:
      path = pathlib.Path(scratch)
      with folder.claimed(path), mock.patch.object(folder, '_PATIENCE', 0.2):
        with self.assertRaisesRegex(config_lib.ConfigError, 'is running'):
          with folder.claimed(path):
            pass


if __name__ == '__main__':
  absltest.main()
