"""What `compare.py --dry-run` says: can a plan answer, and what does it cost?"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import power
from hmpo_jax.config import traced
from hmpo_jax.plan import design
from hmpo_jax.plan import probe
from hmpo_jax.plan import tuning
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import progress
from hmpo_jax.run import schedule

# On CPU two workers take so much of the time of one run after the other
# (results/bench/runs.csv, `processes`: 8 runs in the time of 5.3).
_SIDE_BY_SIDE = 0.66
_WORKER_START = 10.0  # seconds before a worker computes, and after
_Row = tuple[str, str]


class Program(NamedTuple):
  """The runs of one compiled program, and the one that stands for them."""

  runs: list[design.Run]
  num_steps: int
  num_evaluations: int
  # What its warm starts depend on, and no earlier program's.
  warm_starts: set[str]


def programs(planned: Sequence[design.Run]) -> list[Program]:
  """Runs by their programs; those with bad overrides are in none."""
  groups: dict = {}
  warm_starts: set[str] = set()
  for run in planned:
    try:
      config = design.configuration(run, '')
    except config_lib.ConfigError:
      continue
    evaluations = 1 + sum(
      schedule.is_evaluated(config, step + 1)
      for step in range(config.num_steps)
    )
    program = groups.setdefault(
      run_batch.key(config), Program([], config.num_steps, evaluations, set())
    )
    program.runs.append(run)
    warm_start = _warm_start(config)
    if warm_start not in warm_starts:
      program.warm_starts.add(warm_start)
      warm_starts.add(warm_start)
  return list(groups.values())


def starts(
  plan: design.Plan, program_list: Sequence[Program]
) -> dict[str, design.Run]:
  """A run of each task that starts otherwise: of a ladder its lowest rung."""
  later = {task for rungs in plan.ladders.values() for task in rungs[1:]}
  sound = {
    run.task: run for program in program_list for run in program.runs[::-1]
  }
  return {
    task: design.unreplayed(sound[task])
    for task in plan.tasks
    if task in sound and task not in later
  }


def grid_runs(plan: design.Plan, names: Sequence[str]) -> list[design.Run]:
  """The runs of the grids that variants need, without extensions.

  Which points will be the two best is not known: the first two stand for them.
  """
  if not plan.tuning:
    return []
  points = tuning.grid(plan.tuning)
  parts = ((points, plan.tuning.seeds), (points[:2], plan.tuning.final_seeds))
  return [
    run
    for task in plan.tasks
    for name in tuning.needed(plan, names)
    for chosen, seeds in parts
    for _, run in tuning.runs(plan, task, name, chosen, seeds)
  ]


def faults(planned: Sequence[design.Run]) -> list[str]:
  """Runs that can't start, each with its reason; the others can."""
  reasons = {run.name: _fault(run) for run in planned}
  return [f'{name}: {reason}' for name, reason in reasons.items() if reason]


def objections(plan: design.Plan, planned: Sequence[design.Run]) -> list[str]:
  """Why the design can't answer its question; none if it can."""
  lines = []
  sound = [run for run in planned if not _fault(run)]
  if sound and all(_is_on_policy(run) for run in sound):
    lines.append(
      'every arm makes one update per rollout, with the policy that sampled: '
      'all ratios are 1 and all means are one algorithm; raise '
      'train.num_epochs or train.num_minibatches'
    )
  n, k = len(plan.seeds), _family(plan)
  if (
    plan.contrasts
    and not plan.exploratory
    and not power.can_answer(n, k, plan.alpha)
  ):
    lines.append(
      f"{n} seeds can't decide {k} contrasts: the smallest p-value of a "
      f'sign flip, 2^{1 - n}, times {k} is above alpha = {plan.alpha}'
    )
  return lines


def _family(plan):
  """Contrasts that Holm's correction is for."""
  return max(len(plan.contrasts), plan.family if plan.contrasts else 0)


def start_objections(
  plan: design.Plan, by_task: Mapping[str, probe.Found]
) -> list[str]:
  """Why tasks can't show a difference, from the probe of each."""
  low, high = plan.start_exact
  result = []
  for task, start in by_task.items():
    text = (
      f'{task}: {start.start_exact:.3f} of the answers are exact before '
      'the first step'
    )
    if start.start_exact > high:
      result.append(
        f'{text}, above {high}: little is left to learn; shorten '
        'warm_start.num_steps'
      )
    elif start.start_exact < low:
      result.append(
        f'{text}, below {low}: no response is rewarded for being '
        'right; lengthen warm_start.num_steps'
      )
    result += [f'{task}: {text}' for text in _of_template(plan, start)]
  return result


def _of_template(plan, start):
  """What a response that ignores its prompt leaves to be shown."""
  earned = (
    f'a response that ignores its prompt earns a reward of '
    f'{start.template_reward:.3f}'
  )
  if start.template_reward >= start.start_reward:
    yield (
      f'{earned}, the policy {start.start_reward:.3f} before the first '
      'step: forgetting the prompt would count as learning; lengthen '
      'warm_start.num_steps, or take another task'
    )
  if start.template_reward >= plan.target:
    yield (
      f'{earned}, which reaches the target {plan.target}: raise the '
      'target, or take another task'
    )


def start_rows(by_task: Mapping[str, probe.Found]) -> list[_Row]:
  """The start of each task, for the table."""
  return [
    (
      f'{task}: start',
      f'reward {start.start_reward:.3f}, exact {start.start_exact:.3f}; '
      f'best template {start.template_reward:.3f}, '
      f'{start.template_exact:.3f}; prompts whose responses all score '
      f'alike {start.constant_groups:.0%}',
    )
    for task, start in by_task.items()
  ]


def power_rows(plan: design.Plan) -> list[_Row]:
  """What differences the seeds can show, for the table."""
  return [
    (
      'seeds, contrasts',
      f'{len(plan.seeds)}, {len(plan.contrasts)}'
      f'{" (exploratory)" if plan.exploratory else ""}',
    ),
    (
      'smallest effect they show with power .8',
      f'{_effect(plan)}, if paired differences scatter by {plan.expected_sd:g}',
    ),
  ]


def _effect(plan):
  """In held-out reward, of which there is 1 at most."""
  effect = power.smallest_detectable(
    plan.expected_sd, len(plan.seeds), plan.alpha, max(1, _family(plan))
  )
  if effect > 1:
    return 'none: it would exceed the whole range of the reward'
  return f'{effect:.3f} of held-out reward'


def cost_rows(
  costs: Sequence[tuple[Program, probe.Found]], num_workers: int
) -> list[_Row]:
  """Runs, programs, time and memory, for the table.

  Args:
    costs: each program with the timing of a run of it.
    num_workers: at once.
  """
  seconds, compiling = 0.0, 0.0
  for program, cost in costs:
    one = program.num_steps * cost.step_s
    one += program.num_evaluations * cost.eval_s
    seconds += len(program.runs) * one
    seconds += len(program.warm_starts) * cost.warm_start_s
    compiling += cost.compile_s + _WORKER_START
  if num_workers > 1:
    seconds *= _SIDE_BY_SIDE
  largest = max(
    len(program.runs) * cost.state_bytes + cost.temporary_bytes
    for program, cost in costs
  )
  runs = sum(len(program.runs) for program, _ in costs)
  return [
    ('runs, programs', f'{runs}, {len(costs)}'),
    (
      'time, estimated',
      f'{progress.duration(seconds + compiling)}, of which '
      f'{progress.duration(compiling)} compilation, on {costs[0][1].platform}',
    ),
    ('memory of the largest program, at most', f'{largest / 1e9:.2f} GB'),
  ]


def _warm_start(config):
  """What two runs must share to share their warm start, as its cache has it."""
  model, warm = config.model.to_dict(), config.warm_start.to_dict()
  for key in traced.DOSES:
    del model[key]
  del warm['query_scale']
  temperature = config.rollout.temperature if warm['stop_reward'] else 0.0
  return repr((config.seed, model, config.task.to_dict(), warm, temperature))


def _fault(run):
  try:
    design.configuration(run, '')
  except config_lib.ConfigError as error:
    return str(error)
  return ''


def _is_on_policy(run):
  config = design.configuration(run, '')
  updates = config.train.num_epochs * config.train.num_minibatches
  return updates == 1 and config.rollout.staleness == 0
