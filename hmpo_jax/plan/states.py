"""How far runs of a plan are: finished, failed for good, or still to make."""

from collections.abc import Sequence
import pathlib

import ml_collections

from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.plan import folder as folder_lib
from hmpo_jax.plan import tuning
from hmpo_jax.run import failure
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import summary as summary_lib

# Why the runs of a grid can't be made longer.
_TUNED = 'the settings of its variants were chosen by runs of that length'


class BadOverrides(Exception):
  """What a run overrides makes no configuration."""


def ready(
  planned: Sequence[design.Run],
  workdir: pathlib.Path,
  given: pathlib.Path | None = None,
):
  """Splits runs into those to make, with their configurations, and failures.

  Args:
    planned: runs.
    workdir: of the plan.
    given: the same as the user named it, for the configurations.

  Returns:
    [(run, config)] of runs that are neither finished nor failed for good, and
    {name: reason} of those that can't start or have failed for good.

  Raises:
    ConfigError: a folder holds a run of another configuration.
  """
  pending, failures = [], {}
  for run in planned:
    folder = workdir / run.folder
    try:
      config = own_configuration(run, workdir, given or workdir)
    except BadOverrides as error:
      failure.fail(folder, str(error), 0)
      failures[run.name] = str(error)
      continue
    failed = failure_of(folder)
    if failed and failed['final']:
      failures[run.name] = failed['reason']
    elif not is_finished(folder, config.num_steps):
      pending.append((run, config))
  return pending, failures


def own_configuration(
  run: design.Run, workdir: pathlib.Path, given: pathlib.Path
) -> ml_collections.ConfigDict:
  """The configuration of a run whose folder is its own, or new.

  The arguments are those of `ready`.

  Raises:
    BadOverrides: they make none.
    ConfigError: the folder holds a run of another configuration.
  """
  try:
    config = design.configuration(run, str(given / folder_lib.WARM_STARTS))
  except config_lib.ConfigError as error:
    raise BadOverrides(str(error)) from error
  is_tuning = run.folder.parts[0] == tuning.FOLDER
  run_folder.refuse_other_run(
    workdir / run.folder,
    run_folder.described_config(config),
    _TUNED if is_tuning else '',
  )
  return config


def is_finished(folder: pathlib.Path, num_steps: int) -> bool:
  """Whether a run folder holds a whole summary, of as many steps as records.

  One of fewer than `num_steps` is of a run that is to be longer now.

  One that has lost records is not: whoever opens it says so.
  """
  summary = summary_lib.read(folder / run_folder.SUMMARY, num_steps)
  if summary is None:
    return False
  file = folder / run_records.METRICS
  return file.exists() and file.read_bytes().count(b'\n') == summary['steps']


def failure_of(folder: pathlib.Path) -> dict | None:
  """What failed.json says; None if there is none that is whole."""
  content = files.read_json(folder / failure.FAILED) or {}
  is_whole = {'reason', 'step', 'final'} <= content.keys()
  return content if is_whole else None
