"""What an experiment plan is, and the runs that it asks for.

A file in configs/ returns a Plan. A *cell* is one variant on one task; it has a
run for each seed. Seed s decides initialisation, warm start, prompts and
sampling in every cell, so that cells are compared seed by seed.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any
from typing import NamedTuple

import ml_collections

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import kinds
from hmpo_jax.config import files as config_files

OUTCOMES = tuple(kinds.KINDS)
RATE = 'optim.learning_rate'  # which the rungs of a ladder differ in
OWN, BASE = 'own', 'base'  # settings that are not another variant's
TUNED = (RATE, 'loss.clip_eps_low', 'loss.clip_eps_high')

Overrides = Mapping[str, Any]  # by dotted key of a run's configuration


@dataclasses.dataclass(frozen=True)
class Variant:
  """What one arm of a plan changes, and whose tuned settings it runs at."""

  overrides: Overrides = dataclasses.field(default_factory=dict)
  # Learning rate and clip range: `own` from its own grid, those of another
  # variant, or `base`, the plan's; what overrides name wins.
  settings: str = BASE
  # The clip range, on both sides, that clips this share of the rows of the
  # variant of `settings`, by its grid; 0 takes that variant's own.
  clip_frac: float = 0.0
  replays: str = ''  # variant whose order p, of another seed, is run again
  exploratory: bool = True
  note: str = ''  # for the report: what the arm is for


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A confirmatory question: one outcome of one variant against another's."""

  variant: str
  baseline: str
  # area (under the held-out reward) | exact_area | collapse | rung (critical
  # one of a ladder)
  outcome: str
  # Task or ladder; '' where the plan has one only. Of a ladder an area is the
  # mean over its rungs.
  task: str = ''
  # Task or ladder whose difference is subtracted: an interaction.
  minus: str = ''

  @property
  def name(self) -> str:
    """As reports call it: `hmpo - gspo on sort`."""
    return kinds.name_of(self.variant, self.baseline, self.task, self.minus)


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The grid that each variant with settings of its own is tuned on."""

  learning_rates: Sequence[float]  # ascending
  eps: Sequence[float]  # ascending, of both sides of the clip range
  seeds: Sequence[int]  # used nowhere else
  max_extensions: int = 2  # rows that may be added beyond an edge
  # On which the two best points are run again, if any: the best of few seeds
  # was lucky. Used nowhere else either.
  final_seeds: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """Variants, tasks, seeds, and the contrasts that compare them.

  `rules.check` says what must hold of it.
  """

  question: str
  variants: Mapping[str, Variant]
  tasks: Mapping[str, Overrides]  # the same for all variants
  seeds: Sequence[int]
  base: Overrides = dataclasses.field(default_factory=dict)
  # Of each ladder its rungs: tasks that differ in the learning rate,
  # ascending. See `rungs`.
  ladders: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  contrasts: Sequence[Contrast] = ()
  # Variant that others are shown against; '' is the first contrast's baseline,
  # and without contrasts the first variant.
  reference: str = ''
  # Confirmatory contrasts of all plans that one Holm correction is for; 0: of
  # this plan alone.
  family: int = 0
  tuning: Tuning | None = None
  exploratory: bool = False  # then the report gives no verdict
  alpha: float = 0.05  # of all contrasts together
  # Of equivalence by outcome, where they aren't those of analysis/kinds.py.
  margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
  target: float = 0.85  # held-out reward that is to be reached
  failure_reward: float = 0.0  # held-out reward of a run after its failure
  # Fall below the best that a run was, see analysis/ladder.py.
  collapse_margin: float = 0.05
  # Exact match at the start outside which a task shows nothing: so high that
  # little is left to learn, so low that no response is paid for being right.
  start_exact: tuple[float, float] = (0.02, 0.9)
  expected_sd: float = 0.02  # of a paired difference of areas, before the data


class Run(NamedTuple):
  """One run of a plan."""

  task: str
  variant: str
  seed: int
  folder: pathlib.PurePath  # relative to the plan's
  overrides: dict  # of the default configuration
  source: pathlib.PurePath | None = None  # run whose order is run again

  @property
  def name(self) -> str:
    """Its folder, as progress and failures name it."""
    return str(self.folder)


def rungs(
  name: str,
  learning_rate: float,
  multiples: Sequence[float],
  overrides: Overrides | None = None,
) -> dict[str, Overrides]:
  """Tasks that are the rungs of a ladder: `name-x1`, `name-x1.4` and so on.

  AdamW's rate of what Muon doesn't move, `optim.adam_learning_rate`, stays.

  Args:
    name: of the ladder.
    learning_rate: of multiple 1.
    multiples: ascending; the rates are rounded to six digits.
    overrides: of all rungs.
  """
  return {
    f'{name}-x{multiple:g}': {
      **(overrides or {}),
      RATE: float(f'{learning_rate * multiple:.6g}'),
    }
    for multiple in multiples
  }


def rate_of(plan: Plan, task: str) -> float:
  """The learning rate of a task, for variants that have no other."""
  default = config_lib.default_config().optim.learning_rate
  return plan.tasks[task].get(RATE, plan.base.get(RATE, default))


def runs(
  plan: Plan,
  settings: Mapping[tuple[str, str], Overrides],
  workdir: pathlib.PurePath,
) -> list[Run]:
  """All runs of a plan but those of its tuning.

  Args:
    plan: checked.
    settings: of (task, variant), for variants that don't run at the plan's.
    workdir: of the plan, for the runs that replay others.
  """
  return [
    _run(plan, settings, workdir, task, name, index)
    for index in range(len(plan.seeds))
    for task in plan.tasks
    for name in plan.variants
  ]


def _run(plan, settings, workdir, task, name, index):
  variant, seed = plan.variants[name], plan.seeds[index]
  overrides = {
    **plan.base,
    **plan.tasks[task],
    **settings.get((task, name), {}),
    **variant.overrides,
    'seed': seed,
  }
  source = None
  if variant.replays:
    # The p of another seed: p as it is, without what it answers to. In pairs,
    # so that the first seeds of a plan seldom need the others.
    other = index ^ 1 if index ^ 1 < len(plan.seeds) else index - 1
    source = folder_of(task, variant.replays, plan.seeds[other])
    overrides |= {
      'exponent.kind': 'replayed',
      'exponent.path': str(workdir / source / 'metrics.jsonl'),
    }
  return Run(task, name, seed, folder_of(task, name, seed), overrides, source)


def unreplayed(run: Run) -> Run:
  """A run of the same program and cost that needs no other run's order."""
  if not run.source:
    return run
  kept = {
    key: value
    for key, value in run.overrides.items()
    if key not in ('exponent.kind', 'exponent.path')
  }
  return run._replace(overrides=kept, source=None)


def folder_of(task: str, variant: str, seed: int) -> pathlib.PurePath:
  """The folder of a run in that of its plan."""
  return pathlib.PurePath(task, variant, f'seed-{seed}')


def configuration(run: Run, warm_start: str) -> ml_collections.ConfigDict:
  """The configuration of a run.

  Args:
    run: of a plan.
    warm_start: folder of the warm starts, which all runs of a plan share.

  Raises:
    ConfigError: its overrides make none.
  """
  config = config_lib.default_config()
  for key, value in {**run.overrides, 'warm_start.folder': warm_start}.items():
    config_files.set_key(config, key, value)
  config_lib.validate(config)
  if config.control.may_stop:
    raise config_lib.ConfigError(
      'config.control.may_stop = True: must be False in a plan, whose runs '
      'are compared over the same steps'
    )
  return config


def horizon(plan: Plan) -> int:
  """Steps of a run; the most, where tasks differ."""
  return max(horizon_of(plan, task) for task in plan.tasks)


def horizon_of(plan: Plan, task: str) -> int:
  """Steps of a run on a task."""
  default = config_lib.default_config().num_steps
  return plan.tasks[task].get('num_steps', plan.base.get('num_steps', default))


def chosen(
  plan: Plan, planned: Sequence[Run], only: Sequence[str], num_seeds: int
) -> list[Run]:
  """The runs of some of the variants and of the first of the seeds.

  Args:
    plan: checked.
    planned: all its runs.
    only: variants; none for all.
    num_seeds: 0 for all.

  Raises:
    ConfigError: a name that is no variant.
  """
  unknown = [name for name in only if name not in plan.variants]
  if unknown:
    raise config_lib.ConfigError(
      f'--only: {", ".join(unknown)}: no variant of this plan; it has '
      f'{", ".join(plan.variants)}'
    )
  seeds = list(plan.seeds)[: num_seeds or None]
  return [
    run
    for run in planned
    if run.seed in seeds and (not only or run.variant in only)
  ]


def with_base(plan: Plan, overrides: Overrides) -> Plan:
  """The plan with keys of all runs overridden, on every task."""
  return dataclasses.replace(
    plan,
    base={**plan.base, **overrides},
    tasks={
      task: {
        **keys,
        **{key: value for key, value in overrides.items() if key in keys},
      }
      for task, keys in plan.tasks.items()
    },
  )


def tuned(plan: Plan) -> Iterator[str]:
  """Variants with settings of their own."""
  return (
    name for name, variant in plan.variants.items() if variant.settings == OWN
  )
