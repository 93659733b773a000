"""Runs of a plan through worker processes, a group of equal programs at a time.

What is finished stays as it is; what was interrupted goes on. A worker that
dies has its group taken up again in two halves, until a run dies alone: that
one has failed, and the others go on.
"""

from collections.abc import Sequence
from concurrent import futures
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.plan import folder as folder_lib
from hmpo_jax.plan import overview
from hmpo_jax.plan import probe
from hmpo_jax.plan import states
from hmpo_jax.plan import worker
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import checkpoint
from hmpo_jax.run import failure
from hmpo_jax.run import interruption as interruption_lib
from hmpo_jax.run import progress as progress_lib
from hmpo_jax.run import records as run_records
from hmpo_jax.run import session

LOG = 'workers.log'  # what workers say on stderr
COMMAND = [sys.executable, '-m', 'hmpo_jax.plan.worker']
_CONFIG_KEY = 'warm_start.folder'


class Job(NamedTuple):
  """A group of runs for one worker."""

  runs: list[design.Run]
  num_steps: int  # of each

  @property
  def names(self) -> list[str]:
    """Of its runs."""
    return [run.name for run in self.runs]

  def halves(self) -> list['Job']:
    """Two jobs with its runs."""
    middle = (len(self.runs) + 1) // 2
    return [
      Job(self.runs[:middle], self.num_steps),
      Job(self.runs[middle:], self.num_steps),
    ]


def jobs_of(
  pending, workdir: pathlib.Path, num_workers: int, max_runs: int
) -> list[Job]:
  """Groups of one program each, so many that no worker stands idle.

  Args:
    pending: (run, config) of each.
    workdir: of the plan.
    num_workers: at once.
    max_runs: of a group.
  """
  groups: dict = {}
  for run, config in pending:
    # Runs of a group go step by step: those that have come equally far.
    key = run_batch.key(config), _saved_step(workdir / run.folder)
    groups.setdefault(key, (config.num_steps, []))[1].append(run)
  share = max(1, math.ceil(len(pending) / num_workers))
  jobs = []
  for num_steps, runs in groups.values():
    parts = math.ceil(len(runs) / min(share, max_runs))
    size = math.ceil(len(runs) / parts)
    jobs += [
      Job(runs[i : i + size], num_steps) for i in range(0, len(runs), size)
    ]
  # The largest first, so that they don't end alone.
  return sorted(jobs, key=lambda job: -len(job.runs) * job.num_steps)


def _saved_step(folder):
  return checkpoint.newest_step(folder / session.CHECKPOINTS)


class Launcher:
  """Has workers train runs, shows how far they are, collects failures."""

  def __init__(
    self, workdir: pathlib.Path, lock: int, num_workers: int, max_runs: int = 64
  ):
    """Starts nothing yet.

    Args:
      workdir: of the plan.
      lock: descriptor that keeps others out of it, for the workers to inherit.
      num_workers: at once.
      max_runs: of one program.
    """
    # Configurations name places as the user did, on whatever machine.
    self._given, self._workdir = workdir, workdir.absolute()
    self._lock_file = lock
    self.num_workers = num_workers
    self._max_runs = max_runs
    self._lock = threading.Lock()
    self._workers: set[subprocess.Popen] = set()
    self._stopping = False
    self.failures: dict[str, str] = {}  # reason by name of the run
    self._refused: dict[str, str] = {}  # why folders could not be opened

  def train(self, planned: Sequence[design.Run]) -> None:
    """Trains runs, those that replay others last.

    Raises:
      ConfigError: a folder holds a run of another configuration.
      Interrupted: a signal came; all runs are in their checkpoints.
    """
    for stage in (
      [run for run in planned if not run.source],
      [run for run in planned if run.source],
    ):
      pending, failures = states.ready(stage, self._workdir, self._given)
      self._fail(failures)
      if pending:
        self._train(pending)

  def refuse_others(self, planned: Sequence[design.Run]) -> None:
    """Raises ConfigError if a folder holds a run of another configuration."""
    for run in planned:
      with contextlib.suppress(states.BadOverrides):
        states.own_configuration(run, self._workdir, self._given)

  def probe(self, pending) -> list[probe.Found]:
    """Probes runs in one worker.

    Args:
      pending: (run, whether to time its steps) of each.

    Raises:
      ConfigError: the worker ended otherwise than well.
    """
    runs = [run for run, _ in pending]
    request = self._request(
      worker.PROBE, runs, ['.' if is_timed else '' for _, is_timed in pending]
    )
    starts: list[probe.Found] = []
    code, error = self._work(
      request, lambda line: starts.append(probe.Found(**line))
    )
    if code:
      raise config_lib.ConfigError(
        f'the probe of the plan failed: {_reason(code, error)}'
      )
    return starts

  def _train(self, pending):
    jobs = jobs_of(pending, self._workdir, self.num_workers, self._max_runs)
    total = sum(len(job.runs) * job.num_steps for job in jobs)
    what = f'steps of {overview.count(len(pending))}'
    with (
      interruption_lib.Interruption() as interruption,
      progress_lib.Progress(total, what) as progress,
      futures.ThreadPoolExecutor(self.num_workers) as pool,
    ):
      board = overview.Overview(
        progress,
        {
          run.name: overview.Way(
            _saved_step(self._workdir / run.folder), job.num_steps
          )
          for job in jobs
          for run in job.runs
        },
      )
      interruption.tell = board.note
      waiting = {pool.submit(self._job, job, board) for job in jobs}
      while waiting:
        done, waiting = futures.wait(waiting, 0.2, futures.FIRST_COMPLETED)
        if interruption.is_asked():
          self._stop()
        interruption.waits_for = board.before_end()
        for future in done:
          if not self._stopping:
            waiting |= {
              pool.submit(self._job, job, board) for job in future.result()
            }
    if self._refused:
      raise config_lib.ConfigError(
        '; '.join(f'{name}: {reason}' for name, reason in self._refused.items())
      )
    if self._stopping:
      raise base.Interrupted

  def _job(self, job, board) -> list[Job]:
    """Has a worker train a group; returns what must be taken up again."""
    if self._stopping:
      return []
    board.started(job.names)
    request = self._request(
      worker.TRAIN,
      job.runs,
      [str(self._workdir / run.folder) for run in job.runs],
    )
    code, error = self._work(request, lambda line: self._take(job, line, board))
    left = [
      run
      for run in job.runs
      if run.name not in self.failures | self._refused
      and not states.is_finished(self._workdir / run.folder, job.num_steps)
    ]
    if not left or self._stopping:
      return []
    reason = _reason(code, error)
    if code == interruption_lib.EXIT_CODE:
      self._stop()  # a full disk, or a signal for the worker alone
      board.note(f'stopped: {reason}')
      return []
    if len(left) > 1:
      board.note(f'warning: {reason}; its {len(left)} runs go on in two halves')
      return Job(left, job.num_steps).halves()
    folder = self._workdir / left[0].folder
    failure.fail(folder, reason, _recorded_steps(folder))
    board.ended(left[0].name, overview.FAILED)
    self._fail({left[0].name: reason}, board)
    return []

  def _take(self, job, line, board):
    report = run_batch.Report(**line)
    if report.kind == 'step':
      return board.step(job.names, report.step)
    run = job.runs[report.run]
    if report.kind == 'refused':
      self._refused[run.name] = report.text
      board.ended(run.name, overview.REFUSED)
    elif report.kind == 'failed':
      folder = self._workdir / run.folder
      if states.failure_of(folder) is None:
        failure.fail(folder, report.text, report.step)
      board.ended(run.name, overview.FAILED)
      self._fail({run.name: report.text}, board)
    elif report.kind == 'note':
      board.note(f'{run.name}: {report.text}')
    else:
      board.ended(run.name, overview.DONE)
    return None

  def _fail(self, failures, board=None):
    with self._lock:
      self.failures |= failures
    tell = board.note if board else progress_lib.tell
    for name, reason in failures.items():
      tell(f'failed: {name}: {reason}')

  def _request(self, task, runs, folders):
    warm = {_CONFIG_KEY: str(self._given / folder_lib.WARM_STARTS)}
    return {
      'task': task,
      'runs': [
        [{**run.overrides, **warm}, folder]
        for run, folder in zip(runs, folders)
      ],
    }

  def _work(self, request, take):
    """Exit code and last words of a worker, after all it told was taken."""
    with (
      tempfile.TemporaryFile('w+', encoding='utf-8') as errors,
      self._worker(errors) as process,
    ):
      with self._lock:
        self._workers.add(process)
      # The pipe stays open: a worker that sees it end has lost its plan. One
      # that dies before it has read all says by its code why.
      with contextlib.suppress(BrokenPipeError):
        print(json.dumps(request), file=process.stdin, flush=True)
      for line in process.stdout:
        if line.startswith('{'):  # else a library's word
          take(json.loads(line))
      code = process.wait()
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
      with self._lock:
        self._workers.discard(process)
      errors.seek(0)
      lines = errors.read().splitlines()
      self._keep(lines)
    return code, lines[-1] if lines else 'it said nothing'

  def _worker(self, errors):
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
    return subprocess.Popen(
      COMMAND,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      # The package is found where this process found it.
      env=os.environ | {'PYTHONPATH': path},
      pass_fds=(self._lock_file,),
      # A terminal's ^C is for this process, which asks the workers once.
      start_new_session=True,
    )

  def _keep(self, lines):
    with self._lock, open(self._workdir / LOG, 'a', encoding='utf-8') as log:
      log.writelines(f'{line}\n' for line in lines)

  def _stop(self):
    """Asks all workers to end after their step."""
    with self._lock:
      already, self._stopping = self._stopping, True
      workers = list(self._workers)
    if not already:
      for process in workers:
        process.send_signal(signal.SIGTERM)


def _recorded_steps(folder):
  try:
    return len(run_records.read(folder))
  except config_lib.ConfigError:
    return 0


def _reason(code, error):
  if code < 0:
    return f'its process was killed by {signal.Signals(-code).name}'
  return f'its process ended with code {code}: {error}'
