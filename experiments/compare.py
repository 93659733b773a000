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

import pathlib
import sys

from absl import app
from absl import flags

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.plan import comparison
from hmpo_jax.plan import design
from hmpo_jax.plan import folder
from hmpo_jax.plan import rules
from hmpo_jax.run import command_line
from hmpo_jax.run import interruption
from hmpo_jax.run import progress

_CONFIG = flags.DEFINE_string(
  'config', None, 'Plan: a file of configs/ that returns one.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Plan folder; runs/<name of the plan> if unset.'
)
_ONLY = flags.DEFINE_list('only', [], 'Variants to run; all if unset.')
_SEEDS = flags.DEFINE_integer(
  'seeds', 0, 'The first so many of the seeds; all if 0.', lower_bound=0
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Says what it would do.')
_FORCE = flags.DEFINE_bool(
  'force', False, "Runs a plan that can't answer its question."
)
_JOBS = flags.DEFINE_integer(
  'jobs',
  0,
  'Worker processes at once; 0: one per core, at most 8, where '
  'all devices are CPUs, else 1.',
  lower_bound=0,
)
_MAX_RUNS = flags.DEFINE_integer(
  'max_runs', 64, 'Runs in one program at most.', lower_bound=1
)

_FAILED = 3  # exit code


def main(arguments) -> None:
  """Runs the plan and says what has failed."""
  plan, name, workdir = arguments
  with command_line.reported():
    try:
      failures = _compare(plan, name, workdir)
    except (base.Interrupted, KeyboardInterrupt):
      print('interrupted: the same command goes on', file=sys.stderr)
      sys.exit(interruption.EXIT_CODE)
  if failures:
    print(f'{len(failures)} runs have failed:', file=sys.stderr)
    for run, reason in failures.items():
      print(f'  {run}: {reason}', file=sys.stderr)
    sys.exit(_FAILED)
  if not _DRY_RUN.value:
    print(f'done: python experiments/report.py --workdir={workdir}')


def _compare(plan, name, workdir):
  """Why runs have failed, by their names."""
  with folder.claimed(workdir) as lock:
    compared = comparison.Comparison(
      plan,
      name,
      workdir,
      lock,
      only=_ONLY.value,
      num_seeds=_SEEDS.value,
      num_workers=_JOBS.value,
      max_runs=_MAX_RUNS.value,
    )
    check = compared.check(_DRY_RUN.value)
    for text in check.faults:
      print(f"can't start: {text}", file=sys.stderr)
    progress.summary_table(check.rows)
    _object(check.objections, plan.exploratory)
    return {} if _DRY_RUN.value else compared.run()


def _object(objections, is_exploratory):
  """Refuses, unless told to go on, a plan that can't answer its question."""
  for text in objections:
    print(f'objection: {text}', file=sys.stderr)
  if objections and not (_FORCE.value or is_exploratory):
    raise config_lib.ConfigError(
      "this plan can't answer its question, see above; --force runs it all "
      'the same'
    )


def parse_flags(argv: list[str]):
  """Parses the command line; returns plan, name and folder."""
  rest = command_line.parse(argv, keep_programs=False)
  with command_line.reported():
    overrides = dict(map(command_line.override, rest))
    if not _CONFIG.value:
      raise config_lib.ConfigError(
        'no plan: give one as --config=configs/plan.py'
      )
    plan = design.with_base(
      _load(_CONFIG.value),
      {key: config_files.typed(key, text) for key, text in overrides.items()},
    )
    rules.check(plan)
  name = config_files.run_name(_CONFIG.value)
  return plan, name, pathlib.Path(_WORKDIR.value or f'runs/{name}')


def _load(file):
  plan = config_files.read(file)
  if not isinstance(plan, design.Plan):
    raise config_lib.ConfigError(
      f'--config={file}: get_config() must return a '
      'hmpo_jax.plan.design.Plan; experiments/main.py runs a single '
      'configuration'
    )
  return plan


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
