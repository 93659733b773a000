"""A plan in its folder, from its check to its last run."""

from collections.abc import Sequence
import os
import pathlib
import sys
from typing import NamedTuple

from hmpo_jax import config as config_lib
from hmpo_jax.plan import description
from hmpo_jax.plan import design
from hmpo_jax.plan import doctor
from hmpo_jax.plan import folder
from hmpo_jax.plan import launch
from hmpo_jax.plan import tuning
from hmpo_jax.run import records as run_records

_MAX_WORKERS = 8


class Check(NamedTuple):
  """What is to be told before a plan runs."""

  rows: list[tuple[str, str]]  # of a table, label and value
  faults: list[str]  # runs that can't start, with the reason
  objections: list[str]  # why the plan can't answer its question


class Comparison:
  """First `check`, then `run`."""

  def __init__(
    self,
    plan: design.Plan,
    name: str,
    workdir: pathlib.Path,
    lock: int,
    *,
    only: Sequence[str] = (),
    num_seeds: int = 0,
    num_workers: int = 0,
    max_runs: int = 64,
  ):
    """Starts nothing yet.

    Args:
      plan: checked.
      name: of the plan, for its report.
      workdir: its folder.
      lock: descriptor from `folder.claimed`.
      only: variants to run; none for all.
      num_seeds: the first so many of the seeds; 0 for all.
      num_workers: processes at once; 0 for one per core, at most 8, where all
        devices are CPUs, else 1.
      max_runs: in one program.
    """
    self._plan, self._name, self._workdir = plan, name, workdir
    self._only, self._num_seeds = only, num_seeds
    self._names = list(only) or list(plan.variants)
    self._num_workers = num_workers
    self._device = ''
    # The probe, which tells the platform, takes one worker.
    self._launcher = launch.Launcher(workdir, lock, 1, max_runs)

  def check(self, with_costs: bool) -> Check:
    """What the plan comes to, and why it can't answer its question.

    Args:
      with_costs: compiles each program and times some steps of it.

    Returns:
      What is to be told before the plan runs.

    Raises:
      ConfigError: an unknown variant, or no run can start.
    """
    planned = self._wanted(design.runs(self._plan, {}, self._workdir))
    faults = doctor.faults(planned)
    grid = doctor.grid_runs(self._plan, self._names)
    programs = doctor.programs(planned + grid)
    if not programs:
      raise config_lib.ConfigError(
        f'no run can start: {"; ".join(faults[:1]) or "none is wanted"}'
      )
    samples = [design.unreplayed(program.runs[0]) for program in programs]
    first = doctor.starts(self._plan, programs)
    probes = [(run, False) for run in first.values()]
    if with_costs:
      probes += [(run, True) for run in samples]
    print('probing the start of each task', file=sys.stderr, flush=True)
    measured = self._launcher.probe(probes)
    self._device = measured[0].device
    self._launcher.num_workers = self._num_workers or _num_workers(
      measured[0].platform
    )
    starts = dict(zip(first, measured))
    rows = doctor.power_rows(self._plan) + doctor.start_rows(starts)
    if with_costs:
      costs = list(zip(programs, measured[len(starts) :]))
      rows = doctor.cost_rows(costs, self._launcher.num_workers) + rows
    objections = doctor.objections(self._plan, planned)
    return Check(
      rows, faults, objections + doctor.start_objections(self._plan, starts)
    )

  def run(self) -> dict[str, str]:
    """Tunes, then trains; continues what was interrupted.

    Returns:
      Why runs have failed, by their names.

    Raises:
      ConfigError: a folder holds a run of another configuration.
      Interrupted: a signal came; the same call goes on.
    """
    settings = self._tune()
    planned = design.runs(self._plan, settings, self._workdir)
    self._launcher.refuse_others(planned)
    folder.write_plan(
      self._workdir,
      self._name,
      self._device,
      description.of(self._plan, planned, settings),
    )
    self._launcher.train(self._wanted(planned))
    return self._launcher.failures

  def _wanted(self, planned):
    wanted = design.chosen(self._plan, planned, self._only, self._num_seeds)
    folders = {run.folder for run in wanted}
    # A replay whose source is neither wanted nor there waits for a wider call.
    return [
      run
      for run in wanted
      if run.source is None
      or run.source in folders
      or (self._workdir / run.source / run_records.METRICS).exists()
    ]

  def _tune(self):
    """Settings of (task, variant), from the grids of those that are needed."""
    names = tuning.needed(self._plan, self._names)
    kept = {
      (task, name): results
      for (task, name), results in folder.read_tuning(self._workdir).items()
      if task in self._plan.tasks
      and name not in names
      and name in design.tuned(self._plan)
    }
    if not names or not self._plan.tuning:
      return tuning.settings(self._plan, kept)
    grid_seeds = self._plan.tuning.seeds
    start = tuning.grid(self._plan.tuning)
    grids = {(task, name): start for task in self._plan.tasks for name in names}
    results: dict = {key: [] for key in grids}
    pending = dict(grids)
    for _ in range(1 + self._plan.tuning.max_extensions):
      self._make(pending, results, grid_seeds)
      pending = {
        key: tuning.extension(points, tuning.ranked(results[key])[0])
        for key, points in grids.items()
      }
      grids = {key: points + pending[key] for key, points in grids.items()}
      if not any(pending.values()):
        break
    if self._plan.tuning.final_seeds:
      finals = {key: tuning.ranked(grid)[:2] for key, grid in results.items()}
      self._make(finals, results, self._plan.tuning.final_seeds)
    results = kept | results
    # A best point that is still on an edge stays; the report shows the grid.
    folder.write_tuning(
      self._workdir,
      [
        result
        for grid in results.values()
        for result in tuning.marked(grid, tuning.best(self._plan, grid))
      ],
    )
    return tuning.settings(self._plan, results)

  def _make(self, grids, results, seeds):
    """Runs points of grids and adds what they came to to the results."""
    planned = [
      ((task, name), point, run)
      for (task, name), points in grids.items()
      for point, run in tuning.runs(self._plan, task, name, points, seeds)
    ]
    self._launcher.train([run for *_, run in planned])
    for key, point, run in planned:
      results[key].append(folder.result(self._plan, self._workdir, run, point))


def _num_workers(platform):
  return min(os.cpu_count() or 1, _MAX_WORKERS) if platform == 'cpu' else 1
