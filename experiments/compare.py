"""Runs an experiment plan: compare.py --config=configs/plan.py --workdir=...

Variants x tasks x seeds, each a run folder of its own under the plan's; runs of
one program go through it together. First the tuned variants' grids, then all
else. The same command on the same folder goes on where it was interrupted.

  --only=hmpo,gspo --seeds=3     some of the variants, the first of the seeds
  --dry-run                      what it would cost and could show; runs nothing
  --config.KEY=VALUE             overrides a key of all runs

Exit codes: 0 done, 2 bad input or a plan that can't answer its question, 3 runs
have failed, 75 interrupted and resumable.
"""

import os
import pathlib
import runpy
import sys

from absl import app
from absl import flags

from hmpo_jax import command_line
from hmpo_jax import config as config_lib
from hmpo_jax import config_file
from hmpo_jax import interruption
from hmpo_jax import progress
from hmpo_jax.plan import design
from hmpo_jax.plan import doctor
from hmpo_jax.plan import folder
from hmpo_jax.plan import launch
from hmpo_jax.plan import tuning

_CONFIG = flags.DEFINE_string('config', None,
                              'Plan: a file of configs/ that returns one.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Plan folder; runs/<name of the plan> if unset.')
_ONLY = flags.DEFINE_list('only', [], 'Variants to run; all if unset.')
_SEEDS = flags.DEFINE_integer(
    'seeds', 0, 'The first so many of the seeds; all if 0.', lower_bound=0)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Says what it would do.')
_FORCE = flags.DEFINE_bool('force', False,
                           'Runs a plan that can\'t answer its question.')
_JOBS = flags.DEFINE_integer(
    'jobs',
    0, 'Worker processes at once; 0: one per core, at most 8, where '
    'all devices are CPUs, else 1.',
    lower_bound=0)
_MAX_RUNS = flags.DEFINE_integer(
    'max_runs', 64, 'Runs in one program at most.', lower_bound=1)

_FAILED = 3  # exit code
_MAX_JOBS = 8


class _Comparison:
  """A plan in its folder, on its way."""

  def __init__(self, plan, name, workdir, lock):
    self._plan, self._name, self._workdir = plan, name, workdir
    # Before a probe tells the platform; it takes one worker only.
    self._launcher = launch.Launcher(workdir, lock, 1, _MAX_RUNS.value)
    self._names = _ONLY.value or list(plan.variants)
    self._settings: dict = {}
    self._device = ''

  def run(self):
    """Checks, tunes, trains; returns failures, reason by name of the run."""
    if not self._check():
      return {}
    self._tune()
    planned = design.runs(self._plan, self._settings, self._workdir)
    folder.write_plan(self._workdir, self._name, self._device,
                      design.describe(self._plan, planned, self._settings))
    self._launcher.train(self._wanted(planned))
    return self._launcher.failures

  def _wanted(self, planned):
    return design.chosen(self._plan, planned, _ONLY.value, _SEEDS.value)

  def _check(self):
    """Shows what the plan comes to; whether it is to be run."""
    planned = self._wanted(design.runs(self._plan, {}, self._workdir))
    objections = doctor.objections(self._plan, planned)
    grid = doctor.grid_runs(self._plan, self._names)
    made = doctor.programs(self._plan, planned + grid)
    if not made:
      raise config_lib.ConfigError(f'no run can start: {objections[0]}')
    samples = [design.unreplayed(program.runs[0]) for program in made]
    timed = [(run, True) for run in samples] if _DRY_RUN.value else []
    first = {run.task: run for run in samples[::-1]}
    print('probing the start of each task', file=sys.stderr, flush=True)
    found = self._launcher.probe([(run, False) for run in first.values()] +
                                 timed)
    self._launcher.num_workers = _num_workers(found[0].platform)
    self._device = found[0].device
    starts = dict(zip(first, found))
    objections += doctor.start_objections(self._plan, starts)
    rows = doctor.power_rows(self._plan) + doctor.start_rows(starts)
    if _DRY_RUN.value:
      costs = list(zip(made, found[len(starts):]))
      rows = doctor.cost_rows(costs, self._launcher.num_workers) + rows
    progress.summary_table(rows)
    _object(objections, self._plan.exploratory)
    return not _DRY_RUN.value

  def _tune(self):
    """Settles the settings of the wanted variants on their grids."""
    names = tuning.needed(self._plan, self._names)
    grids = {
        (task, name): tuning.grid(self._plan.tuning) for task in self._plan.tasks
        for name in names
    }
    results = {key: [] for key in grids}
    pending = dict(grids)
    for _ in range(1 + self._plan.tuning.max_extensions if grids else 0):
      made = [(key, *pair)
              for key, points in pending.items()
              for pair in tuning.runs(self._plan, *key, points)]
      self._launcher.train([run for *_, run in made])
      for key, point, run in made:
        results[key].append(
            folder.result(self._plan, self._workdir, run, point))
      pending = {}
      for key, points in grids.items():
        added = tuning.extension(points, tuning.best(results[key]))
        if added:
          pending[key] = added
          grids[key] = points + added
      if not pending:
        break
    # What the last extension found on its edge stays; the report shows it.
    if grids:
      folder.write_tuning(self._workdir, [
          result for found in results.values()
          for result in tuning.marked(found, tuning.best(found))
      ])
    self._settings = tuning.settings(self._plan, results)


def _object(objections, is_exploratory):
  """Refuses, unless told to go on, a plan that can't answer its question."""
  for text in objections:
    print(f'objection: {text}', file=sys.stderr)
  if objections and not (_FORCE.value or is_exploratory):
    raise config_lib.ConfigError(
        'this plan can\'t answer its question, see above; --force runs it all '
        'the same')


def _num_workers(platform):
  if _JOBS.value:
    return _JOBS.value
  return min(os.cpu_count() or 1, _MAX_JOBS) if platform == 'cpu' else 1


def main(arguments) -> None:
  """Runs the plan and says what has failed."""
  plan, name, workdir = arguments
  with command_line.reported():
    with folder.claimed(workdir) as lock:
      try:
        failures = _Comparison(plan, name, workdir, lock).run()
      except launch.Interrupted:
        print('interrupted: the same command goes on', file=sys.stderr)
        sys.exit(interruption.EXIT_CODE)
  if failures:
    print(f'{len(failures)} runs have failed:', file=sys.stderr)
    for run, reason in failures.items():
      print(f'  {run}: {reason}', file=sys.stderr)
    sys.exit(_FAILED)
  if not _DRY_RUN.value:
    print(f'done: python experiments/report.py --workdir={workdir}')


def parse_flags(argv: list[str]):
  """Parses the command line; returns plan, name and folder."""
  argv = [_with_underscore(argument) for argument in argv]
  rest = command_line.parse(argv, keep_programs=False)
  with command_line.reported():
    if not _CONFIG.value:
      raise config_lib.ConfigError('no plan: give one as '
                                   '--config=configs/plan.py')
    file = pathlib.Path(_CONFIG.value)
    plan = design.with_base(
        _load(file), {
            key: config_file.typed(key, text)
            for key, text in map(command_line.override, rest)
        })
    design.check(plan)
  return plan, file.stem, pathlib.Path(_WORKDIR.value or f'runs/{file.stem}')


def _with_underscore(argument):
  return argument.replace('--dry-run',
                          '--dry_run').replace('--max-runs', '--max_runs')


def _load(file):
  if not file.is_file():
    raise config_lib.ConfigError(
        f'--config={file}: there is no file {str(file)!r}')
  try:
    plan = runpy.run_path(str(file))['get_config']()
  except (Exception, SystemExit) as error:  # pylint: disable=broad-exception-caught
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise config_lib.ConfigError(
        f'--config={file}: must be a Python file with get_config(); reading it '
        f'ended in {text}') from error
  if not isinstance(plan, design.Plan):
    raise config_lib.ConfigError(
        f'--config={file}: get_config() must return a hmpo_jax.plan.design.Plan; '
        'experiments/main.py runs a single configuration')
  return plan


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
