"""A plan as JSON, for plan.json."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

from hmpo_jax.analysis import kinds
from hmpo_jax.config import files as config_files
from hmpo_jax.plan import design


def of(
  plan: design.Plan,
  planned: Sequence[design.Run],
  settings: Mapping[tuple[str, str], design.Overrides],
) -> dict:
  """The plan as JSON, for plan.json and whoever reads its results."""
  by_task: dict = {task: {} for task in plan.tasks}
  for (task, variant), values in settings.items():
    by_task[task][variant] = config_files.plain(values)
  return {
    'question': plan.question,
    'exploratory': plan.exploratory,
    'tasks': {
      task: config_files.plain(keys) for task, keys in plan.tasks.items()
    },
    'base': config_files.plain(plan.base),
    'variants': {
      name: dataclasses.asdict(variant)
      | {'overrides': config_files.plain(variant.overrides)}
      for name, variant in plan.variants.items()
    },
    'seeds': list(plan.seeds),
    'ladders': {
      name: {task: design.rate_of(plan, task) for task in tasks}
      for name, tasks in plan.ladders.items()
    },
    'contrasts': [
      {'name': contrast.name} | dataclasses.asdict(contrast)
      for contrast in plan.contrasts
    ],
    'margins': {
      name: plan.margins.get(name, kind.margin)
      for name, kind in kinds.KINDS.items()
    },
    **{
      name: getattr(plan, name)
      for name in (
        'reference',
        'alpha',
        'family',
        'target',
        'failure_reward',
        'collapse_margin',
      )
    },
    'horizon': design.horizon(plan),
    'settings': by_task,
    'runs': [
      {
        'task': run.task,
        'variant': run.variant,
        'seed': run.seed,
        'folder': run.folder.as_posix(),
      }
      for run in planned
    ],
  }
