"""What must hold of a plan before any of its runs."""

import json
import math
import re

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import kinds
from hmpo_jax.config import files as config_files
from hmpo_jax.plan import design

_RESERVED = (design.OWN, design.BASE)
# Folders and files of a plan beside those of its tasks.
_TAKEN = ('tuning', 'warm_start', 'report', 'oracle')
_NAME = re.compile(r'\w[\w.+=-]{0,99}')


def check(plan: design.Plan) -> None:
  """Raises ConfigError for what makes no plan; runs are checked one by one."""
  try:
    _check(plan)
  except (AttributeError, IndexError, TypeError, ValueError) as error:
    if isinstance(error, config_lib.ConfigError):
      raise
    raise config_lib.ConfigError(
      f'this is no plan ({type(error).__name__}: {error}): see '
      'hmpo_jax/plan/design.py for what its fields hold'
    ) from error


def _check(plan):
  if not plan.tasks or not plan.variants:
    raise config_lib.ConfigError('tasks, variants: must hold one or more')
  for task in plan.tasks:
    _check_name('tasks', task, _TAKEN)
  for name, variant in plan.variants.items():
    _check_name('variants', name, _RESERVED)
    _check_variant(plan, name, variant)
  for name, tasks in plan.ladders.items():
    _check_ladder(plan, name, tasks)
  for contrast in plan.contrasts:
    _check_contrast(plan, contrast)
  only = next(iter(plan.tasks))  # a task that is not named is the only one
  questions = [
    (
      frozenset((c.variant, c.baseline)),
      c.outcome,
      frozenset((c.task or only, c.minus)),
    )
    for c in plan.contrasts
  ]
  if len(set(questions)) < len(questions):
    raise config_lib.ConfigError(
      'contrasts: one stands there twice, as it is or turned round'
    )
  _check_numbers(plan)
  if plan.tuning:
    _check_tuning(plan)


def _check_name(where, name, taken):
  if not _NAME.fullmatch(name) or name in taken:
    raise config_lib.ConfigError(
      f'{where}: {name!r} is no name: must be letters, digits and any of '
      f'_.+=-, and not {", ".join(taken)}'
    )


def _check_numbers(plan):
  seeds = list(plan.seeds)
  if (
    not seeds
    or len(set(seeds)) < len(seeds)
    or not all(isinstance(seed, int) for seed in seeds)
  ):
    raise config_lib.ConfigError(
      f'seeds = {seeds}: must be different integers, one or more'
    )
  steps = {design.horizon_of(plan, task) for task in plan.tasks}
  if len(steps) > 1:
    raise config_lib.ConfigError(
      f'tasks: num_steps are {sorted(steps)}: must be the same on all'
    )
  if not 0 < plan.alpha < 0.5:
    raise config_lib.ConfigError(
      f'alpha = {plan.alpha}: must be above 0 and below 0.5'
    )
  if plan.reference:
    _check_known('reference', [plan.reference], plan.variants)
  _check_known('margins', plan.margins, design.OUTCOMES)
  widths = {f'margins[{name!r}]': value for name, value in plan.margins.items()}
  for name in ('expected_sd', 'collapse_margin'):
    widths[name] = getattr(plan, name)
  for name, value in widths.items():
    if not 0 <= value < math.inf:
      raise config_lib.ConfigError(
        f'{name} = {value}: must be finite and at least 0'
      )
  if plan.family and plan.family < len(plan.contrasts):
    raise config_lib.ConfigError(
      f'family = {plan.family}: must be 0 or at least the '
      f'{len(plan.contrasts)} contrasts of the plan'
    )
  for name in ('target', 'failure_reward'):
    if not math.isfinite(getattr(plan, name)):
      raise config_lib.ConfigError(
        f'{name} = {getattr(plan, name)}: must be finite'
      )


def _check_known(where, names, known):
  for name in names:
    if name not in known:
      raise config_lib.ConfigError(
        f'{where}: {name!r} is unknown: must be one of {", ".join(known)}'
      )


def _check_ladder(plan, name, tasks):
  _check_name('ladders', name, (*_TAKEN, *plan.tasks))
  _check_known(f'ladders[{name!r}]', tasks, plan.tasks)
  rates = [design.rate_of(plan, task) for task in tasks]
  if len(rates) < 2 or rates != sorted(set(rates)):
    raise config_lib.ConfigError(
      f'ladders[{name!r}]: {design.RATE} of its tasks are {rates}: must be '
      'two or more, ascending'
    )
  first, *others = (
    {
      key: value
      for key, value in plan.tasks[task].items()
      if key != design.RATE
    }
    for task in tasks
  )
  if any(other != first for other in others):
    raise config_lib.ConfigError(
      f'ladders[{name!r}]: its tasks must differ in {design.RATE} alone'
    )
  for arm, variant in plan.variants.items():
    if design.RATE in variant.overrides or variant.settings != design.BASE:
      raise config_lib.ConfigError(
        f'variants[{arm!r}]: must not have a learning rate of its own, which '
        f'the rungs of ladder {name!r} differ in'
      )


def _check_variant(plan, name, variant):
  if variant.settings not in (*_RESERVED, *plan.variants):
    raise config_lib.ConfigError(
      f'variants[{name!r}].settings = {variant.settings!r}: must be own, '
      'base or a variant'
    )
  if 'num_steps' in variant.overrides:
    raise config_lib.ConfigError(
      f'variants[{name!r}]: num_steps must be the same for all variants: set '
      'it in base'
    )
  json.dumps(config_files.plain(variant.overrides))  # plan.json shall hold them
  _check_settings(plan, name, variant)
  if variant.replays and (
    variant.replays not in plan.variants
    or len(plan.seeds) < 2
    or plan.variants[variant.replays].replays
  ):
    raise config_lib.ConfigError(
      f'variants[{name!r}].replays = {variant.replays!r}: must be a variant '
      'that replays none, of a plan with two seeds or more'
    )


def _check_settings(plan, name, variant):
  own = variant.settings == design.OWN
  if (own or variant.clip_frac) and not plan.tuning:
    raise config_lib.ConfigError(
      f'variants[{name!r}]: settings of its own and clip_frac need a tuning'
    )
  if variant.settings in plan.variants:
    if plan.variants[variant.settings].settings != design.OWN:
      raise config_lib.ConfigError(
        f'variants[{name!r}].settings = {variant.settings!r}: that variant '
        'must have settings of its own'
      )
  elif variant.clip_frac:
    raise config_lib.ConfigError(
      f'variants[{name!r}].clip_frac: settings must name a variant'
    )


def _check_contrast(plan, contrast):
  for name in (contrast.variant, contrast.baseline):
    if name not in plan.variants:
      raise config_lib.ConfigError(
        f'contrasts: {contrast.name}: {name!r} is not a variant'
      )
    if plan.variants[name].exploratory and not plan.exploratory:
      raise config_lib.ConfigError(
        f'contrasts: {contrast.name}: {name!r} is exploratory, so that there '
        'can be no verdict: give the variant exploratory=False'
      )
  if contrast.variant == contrast.baseline:
    raise config_lib.ConfigError(f'contrasts: {contrast.name}: is no contrast')
  _check_known(
    f'contrasts: {contrast.name}: outcome', [contrast.outcome], design.OUTCOMES
  )
  _check_places(plan, contrast)


def _check_places(plan, contrast):
  """Where a contrast is: no outcome is pooled over tasks."""
  where, on_rungs = f'contrasts: {contrast.name}', contrast.outcome == 'rung'
  known = (*plan.ladders, *plan.tasks)
  if not contrast.task and (len(plan.tasks) > 1 or on_rungs):
    raise config_lib.ConfigError(
      f'{where}: must name its task, one of {", ".join(known)}'
    )
  named = [name for name in (contrast.task, contrast.minus) if name]
  _check_known(f'{where}: task', named, known)
  is_event = kinds.KINDS[contrast.outcome].is_event
  if is_event and (contrast.minus or contrast.task in plan.ladders):
    raise config_lib.ConfigError(
      f'{where}: {contrast.outcome} must be of one task alone'
    )
  if on_rungs and not all(name in plan.ladders for name in named):
    there = ', '.join(plan.ladders) or 'none'
    raise config_lib.ConfigError(f'{where}: rung must be of a ladder: {there}')
  if contrast.minus and contrast.minus == (contrast.task or known[0]):
    raise config_lib.ConfigError(f'{where}: subtracts itself')


def _check_tuning(plan):
  tuning = plan.tuning
  for name, seeds, others in (
    ('seeds', tuning.seeds, (*plan.seeds,)),
    ('final_seeds', tuning.final_seeds, (*plan.seeds, *tuning.seeds)),
  ):
    if len(set(seeds)) < len(seeds) or not all(
      isinstance(seed, int) for seed in seeds
    ):
      raise config_lib.ConfigError(
        f'tuning.{name} = {list(seeds)}: must be different integers'
      )
    both = sorted(set(seeds) & set(others))
    if both:
      raise config_lib.ConfigError(
        f'tuning.{name}: {both} are seeds of the plan too, or of the grid; '
        'what is tuned on a seed must not be judged by it'
      )
  if not tuning.seeds or tuning.max_extensions < 0:
    raise config_lib.ConfigError(
      'tuning: must have a seed or more, and max_extensions of at least 0'
    )
  for name in ('learning_rates', 'eps'):
    values = list(getattr(plan.tuning, name))
    if values != sorted(set(values)) or not values or values[0] <= 0:
      raise config_lib.ConfigError(
        f'tuning.{name} = {values}: must ascend from above 0'
      )
