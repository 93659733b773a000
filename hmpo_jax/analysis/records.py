"""Reads the folder of a plan, finished or still running, into tables."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import NamedTuple

import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import plan_file
from hmpo_jax.config import files as config_files
from hmpo_jax.run import files
from hmpo_jax.run import records as run_records

FINISHED, FAILED, UNFINISHED = 'finished', 'failed', 'unfinished'
MISSING, DAMAGED = 'not started', 'damaged'
STATES = (FINISHED, FAILED, UNFINISHED, MISSING, DAMAGED)
RUN = ['task', 'variant', 'seed']  # columns that name a run


class Plan(NamedTuple):
  """A plan and what its runs have left so far."""

  about: dict  # what plan.json holds
  # One row a run: RUN, state, end (step of the failure of a failed run, else
  # number of recorded steps), reason, tau of the QK-clip (NaN where it is off),
  # monitor_tau, learning_rate, eps_low and eps_high.
  runs: pandas.DataFrame
  # One row a record: RUN, step and every metric that is one number, NaN where
  # the step did not measure it.
  steps: pandas.DataFrame
  # One row an evaluation: RUN, step, reward, exact, and measured, which is
  # false where a failed run is scored.
  heldout: pandas.DataFrame
  tuning: pandas.DataFrame | None  # tuning/tuning.csv
  phase: pandas.DataFrame | None  # oracle/phase.csv

  @property
  def is_whole(self) -> bool:
    """Whether every run has finished or failed."""
    return bool(has_ended(self.runs).all())


def read(workdir: str | pathlib.Path) -> Plan:
  """The tables of a plan folder.

  A run that has failed is scored: from the step of the failure on its held-out
  reward is the plan's `failure_reward`, and none of its answers is right.

  Raises:
    ConfigError: no plan, or one that isn't whole. A run that can't be read is
      no error but `damaged`.
  """
  workdir = pathlib.Path(workdir)
  return _read(plan_file.read(workdir / plan_file.NAME), workdir)


def of_runs(
  variants: Mapping[str, Sequence[str | pathlib.Path]], *, target: float = 0.85
) -> Plan:
  """The tables of runs that no plan asked for, as of an exploratory plan.

  Args:
    variants: the run folders of each name, one for each seed.
    target: held-out reward that is to be reached.

  Raises:
    ConfigError: no folder, one without a config.json, two of one name and
      seed, or runs of different tasks or numbers of steps.
  """
  runs: list[dict] = []
  configs = []
  for name, folders in variants.items():
    for folder in map(pathlib.Path, folders):
      config = config_files.load(str(folder / 'config.json'), {})
      run = {'task': config.task.name, 'variant': name, 'seed': config.seed}
      runs.append(run | {'folder': str(folder.absolute())})
      configs.append(config)
  named = {tuple(run[key] for key in RUN) for run in runs}
  alike = {(config.task.name, config.num_steps) for config in configs}
  if len(named) < len(runs) or len(alike) != 1:
    raise config_lib.ConfigError(
      'these runs are no comparison: each name and seed must stand for one '
      f'run, all of one task and length: {sorted(named)}, {sorted(alike)}'
    )
  ((task, horizon),) = alike
  return _read(
    plan_file.NO_PLAN
    | {
      'tasks': [task],
      'variants': {name: {} for name in variants},
      'seeds': sorted({run['seed'] for run in runs}),
      'target': target,
      'horizon': horizon,
      'runs': runs,
    },
    pathlib.Path(),
  )


def of_report(folder: str | pathlib.Path) -> Plan:
  """The tables of a plan of which the report is left, but no run.

  Args:
    folder: of `report.write`, with its tables/ and a copy of the plan.json.

  Returns:
    Without `steps`, `tuning` and `phase`.

  Raises:
    ConfigError: no plan.json, or no tables that fit it.
  """
  folder = pathlib.Path(folder)
  about = plan_file.read(folder / plan_file.NAME)
  tables = folder / 'tables'
  try:
    runs, heldout = (
      pandas.read_csv(
        tables / f'{name}.csv',
        keep_default_na=False,
        na_values=[''],
        dtype=_TEXTS,
      )
      for name in ('seeds', 'heldout')
    )
    # Older reports have fewer settings.
    runs = runs.reindex(
      columns=[*runs.columns, *(name for name in _SETTINGS if name not in runs)]
    )
    runs = runs[RUN + _RUN_COLUMNS].fillna({'reason': ''})
    if 'stderr' not in heldout:
      heldout = heldout.assign(stderr=0.0)
    heldout = heldout[RUN + _HELDOUT + ['measured']]
  except (OSError, ValueError, KeyError) as error:
    raise config_lib.ConfigError(
      f'{tables} does not hold the tables of a report ({error}): '
      'experiments/report.py writes them'
    ) from error
  return Plan(about, runs, _stack([], ['step']), heldout, None, None)


def _read(about, workdir):
  """The tables of the runs that a plan.json names."""
  rows, steps, heldout = [], [], []
  for run in about['runs']:
    name = {key: run[key] for key in RUN}
    row, frame, evaluations = _run(workdir / run['folder'], about['horizon'])
    rows.append(
      name
      | row
      | _settings(files.read_json(workdir / run['folder'] / 'config.json'))
    )
    steps.append(frame.assign(**name))
    heldout.append(evaluations.assign(**name))
  runs = _ordered(about, pandas.DataFrame(rows))
  return Plan(
    about,
    runs,
    _stack(steps, ['step']),
    _scored(about, runs, _stack(heldout, _HELDOUT)),
    _table(workdir / 'tuning' / 'tuning.csv'),
    _table(workdir / 'oracle' / 'phase.csv'),
  )


def has_ended(runs: pandas.DataFrame) -> pandas.Series:
  """Which runs have finished or failed, so that their outcome is known."""
  return runs['state'].isin([FINISHED, FAILED])


def shown(runs: pandas.DataFrame) -> pandas.DataFrame:
  """Of each task and variant the runs that ended, or all where none has."""
  ended = has_ended(runs)
  any_ended = ended.groupby([runs['task'], runs['variant']]).transform('any')
  return runs[ended | ~any_ended]


_HELDOUT = ['step', 'reward', 'stderr', 'exact']
_EVALUATED = ('eval/reward', 'eval/reward_stderr', 'eval/exact')
# Columns and the keys of the configuration that they show.
_SETTINGS = {
  'tau': ('optim', 'tau'),
  'monitor_tau': ('optim', 'monitor_tau'),
  'learning_rate': ('optim', 'learning_rate'),
  'eps_low': ('loss', 'clip_eps_low'),
  'eps_high': ('loss', 'clip_eps_high'),
}
_RUN_COLUMNS = ['state', 'end', 'reason', *_SETTINGS]
_TEXTS = {'task': str, 'variant': str, 'reason': str}


def _run(folder, horizon):
  """State of a run, its records and its evaluations."""
  try:
    records = run_records.read(folder)
    summary, failure, start = (
      files.read_json(folder / f'{name}.json')
      for name in ('summary', 'failed', 'start')
    )
    heldout = _evaluations(records, summary, start)
    state = _state(records, summary, failure, horizon)
    records = run_records.read_measured(folder)
  except (config_lib.ConfigError, KeyError, TypeError, ValueError) as error:
    records, heldout, summary = [], {}, None
    state = {'state': DAMAGED, 'end': 0, 'reason': str(error)}
  frame = pandas.DataFrame(
    [
      {
        key: value
        for key, value in record.items()
        if not isinstance(value, list)
      }
      for record in records
    ]
  )
  evaluations = pandas.DataFrame(
    [(step, *values) for step, values in sorted(heldout.items())],
    columns=_HELDOUT,
  )
  return state, frame, evaluations


def _settings(description):
  """What a report tells of a run's config.json; NaN without one."""
  unknown = dict.fromkeys(_SETTINGS, float('nan'))
  try:
    config = description['config']
    values = {
      name: float(config[section][key])
      for name, (section, key) in _SETTINGS.items()
    }
    is_off = config['optim']['qk_clip'] == 'off'
  except (KeyError, TypeError, ValueError):
    return unknown
  return values | ({'tau': float('nan')} if is_off else {})


def _ordered(about, runs):
  """Runs by task, variant and seed in the order of the plan."""
  places = [
    runs[key].map({name: i for i, name in enumerate(about[f'{key}s'])})
    for key in RUN
  ]
  order = pandas.concat(places, axis=1).sort_values(RUN).index
  return runs.loc[order].reset_index(drop=True)


def _state(records, summary, failure, horizon):
  is_shorter = summary is not None and (
    summary['steps'] < horizon and not summary.get('early_stop')
  )
  if summary is not None and not is_shorter:
    if summary['steps'] != len(records):
      raise KeyError(f'{len(records)} records of {summary["steps"]} are left')
    return {'state': FINISHED, 'end': len(records), 'reason': ''}
  if failure is not None:
    return {
      'state': FAILED,
      'end': int(failure['step']),
      'reason': ' '.join(str(failure['reason']).split()),
    }
  state = UNFINISHED if records else MISSING
  return {'state': state, 'end': len(records), 'reason': ''}


def _evaluations(records, summary, start):
  """Held-out reward, its error and exact match by step, from step 0 on."""
  values = {}
  if summary is not None:
    values[0] = tuple(
      summary[f'heldout_{name}']
      for name in ('reward_first', 'reward_first_stderr', 'exact_first')
    )
  if start is not None:
    values[0] = tuple(start[name] for name in _EVALUATED)
  return values | {
    record['eval/step']: tuple(record[name] for name in _EVALUATED)
    for record in records
  }


def _table(file):
  if not file.exists():
    return None
  # A variant may be called null.
  names = {'task': str, 'variant': str}
  numbers = {'area': [''], 'clip_frac': ['']}
  try:
    return pandas.read_csv(
      file, keep_default_na=False, na_values=numbers, dtype=names
    )
  except ValueError as error:
    text = ' '.join(str(error).split())
    raise config_lib.ConfigError(f'{file}: damaged ({text})') from error


def _stack(frames, columns):
  """Frames one below the other, with their columns even if all are empty."""
  filled = [frame for frame in frames if len(frame)]
  if not filled:
    return pandas.DataFrame(columns=RUN + columns)
  return pandas.concat(filled, ignore_index=True)


def _scored(about, runs, heldout):
  """Evaluations, with what failed runs count as from their failure on."""
  parts = [heldout.assign(measured=True)]
  for run in runs[runs['state'] == FAILED].itertuples():
    task = heldout[heldout['task'] == run.task]
    steps = {*task['step'], about['horizon']}
    rest = sorted(s for s in steps if s >= max(run.end, 1))
    parts.append(
      pandas.DataFrame(
        {
          'task': run.task,
          'variant': run.variant,
          'seed': run.seed,
          'step': rest,
          'reward': float(about['failure_reward']),
          'stderr': 0.0,
          'exact': 0.0,
          'measured': False,
        }
      )
    )
  both = _stack(parts, _HELDOUT + ['measured'])
  # What is measured at the step of the failure counts no more.
  return both.drop_duplicates(RUN + ['step'], keep='last').sort_values(
    RUN + ['step'], ignore_index=True
  )
