"""The folder of a plan: whose it is, and what its own files say."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import csv
import io
import math
import pathlib

import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import heights
from hmpo_jax.plan import design
from hmpo_jax.plan import tuning
from hmpo_jax.run import environment
from hmpo_jax.run import failure
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import session

PLAN = 'plan.json'
WARM_STARTS = 'warm_start'  # which all runs of a plan share
_PATIENCE = 120.0  # seconds that the workers of a killed plan are waited for


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[int]:
  """Makes the folder of a plan and locks it; gives the lock's descriptor.

  Whoever inherits it holds the lock too: while a worker of a plan that was
  killed still ends its step, the next one waits.

  Raises:
    ConfigError: no folder can be made there, or a plan is running in it.
  """
  run_folder.placed(workdir)
  with files.locked(workdir, 'running', _PATIENCE) as lock:
    yield lock


def write_plan(
  workdir: pathlib.Path, name: str, device: str, content: dict
) -> None:
  """Writes plan.json: what `description.of` says, and what runs it."""
  made_by = {
    'device': device,
    'commit': environment.commit(),
    'versions': environment.versions(),
  }
  files.write_json(workdir / PLAN, {'name': name} | content | made_by)


def write_tuning(
  workdir: pathlib.Path, results: Sequence[tuning.Result]
) -> None:
  """Writes tuning/tuning.csv: the whole grid, seed by seed."""
  file = workdir / tuning.FOLDER / 'tuning.csv'
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(tuning.Result._fields)
  # As pandas has it: nothing where there is no number.
  is_nan = lambda value: isinstance(value, float) and math.isnan(value)
  for result_ in results:
    writer.writerow('' if is_nan(value) else value for value in result_)
  files.replace(file, out.getvalue())


def read_tuning(
  workdir: pathlib.Path,
) -> dict[tuple[str, str], list[tuning.Result]]:
  """The results of tuning.csv by (task, variant); none without the file."""
  file = workdir / tuning.FOLDER / 'tuning.csv'
  results: dict[tuple[str, str], list[tuning.Result]] = {}
  if not file.exists():
    return results
  with open(file, newline='', encoding='utf-8') as lines:
    reader = csv.DictReader(lines)
    try:
      for row in reader:
        key = row['task'], row['variant']
        results.setdefault(key, []).append(_tuned(row))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
      raise config_lib.ConfigError(
        f'{file}, line {reader.line_num}: damaged ({error!r}); put it back, '
        'or take it away to have it written again'
      ) from error
  return results


def _tuned(row):
  """The result that a row of tuning.csv holds, in texts."""
  return tuning.Result(
    row['task'],
    row['variant'],
    float(row['learning_rate']),
    float(row['eps']),
    int(row['seed']),
    float(row['area']),
    row['failed'] == 'True',
    float(row['clip_frac'] or 'nan'),
    row['chosen'] == 'True',
  )


def result(
  plan: design.Plan, workdir: pathlib.Path, run: design.Run, point: tuning.Point
) -> tuning.Result:
  """What a run of a grid came to.

  Raises:
    ConfigError: the run has neither finished nor failed.
  """
  folder = workdir / run.folder
  records = run_records.read(folder)
  failed = files.read_json(folder / failure.FAILED)
  if not failed and not (folder / run_folder.SUMMARY).exists():
    raise config_lib.ConfigError(f'{folder}: the run has not finished')
  return tuning.Result(
    run.task,
    run.variant,
    *point,
    run.seed,
    area=_area(plan, files.read_json(folder / session.START), records, failed),
    failed=bool(failed),
    clip_frac=_clip_frac(folder),
  )


def _clip_frac(folder):
  """Share of clipped rows in the steps that had any; NaN without such a step.

  A loss without a clip clips nothing.
  """
  shares = [
    record.get('clip/low_frac', 0.0) + record.get('clip/high_frac', 0.0)
    for record in run_records.read_measured(folder)
  ]
  known = [share for share in shares if not math.isnan(share)]
  return sum(known) / len(known) if known else math.nan


def _area(plan, start, records, failed):
  """Mean height of the held-out reward, scored as the report scores it."""
  horizon = design.horizon(plan)
  end = min(failed['step'], horizon) if failed else horizon
  curve = {0: start['eval/reward']} if start else {}
  curve |= {record['eval/step']: record['eval/reward'] for record in records}
  if failed:
    curve = {step: value for step, value in curve.items() if step < end}
  if not curve:
    return plan.failure_reward
  steps = np.array(sorted(curve))
  values = np.array([curve[step] for step in steps])
  return heights.scored_area(steps, values, horizon, end, plan.failure_reward)
