"""The outcomes that contrasts compare: where they stand and how they are told.

A contrast is of one *place*: a task, or a ladder, whose rungs are tasks.
"""

from typing import NamedTuple


class Kind(NamedTuple):
  """An outcome of one run, or of one seed's runs on a ladder."""

  column: str  # of `outcomes.per_seed`; '' where a ladder alone has it
  form: str  # of a number, as `format` takes it
  what: str  # in a sentence
  margin: float  # of equivalence, where the plan has no other
  is_event: bool = False  # happens in a run or not


KINDS = {
  'area': Kind('area', '.3f', 'area under the held-out reward', 0.02),
  'exact_area': Kind(
    'exact_area', '.3f', 'area under the held-out exact match', 0.02
  ),
  'collapse': Kind(
    'collapsed', '.0%', 'share of seeds that collapsed', 0.1, True
  ),
  'rung': Kind('', '.2f', 'critical rung, log2 of the learning rate', 0.25),
}


def name_of(variant: str, baseline: str, task: str, minus: str) -> str:
  """A contrast as the report calls it: `a - b on t minus on u`."""
  where = f' on {task}' if task else ''
  return f'{variant} - {baseline}{where}' + (
    f' minus on {minus}' if minus else ''
  )


def places(about: dict) -> dict[str, list[str]]:
  """The tasks of each place of a plan: ladders, then tasks that are no rungs.

  Args:
    about: what plan.json holds.
  """
  ladders = {name: list(rungs) for name, rungs in about['ladders'].items()}
  on_ladders = {task for rungs in ladders.values() for task in rungs}
  return ladders | {
    task: [task] for task in about['tasks'] if task not in on_ladders
  }


def told_tasks(about: dict) -> list[str]:
  """Tasks that are told of and drawn one by one: of a ladder, its ends."""
  ends = [
    (rungs[0], rungs[-1]) for rungs in map(list, about['ladders'].values())
  ]
  rungs = {task for ladder in about['ladders'].values() for task in ladder}
  shown = {task for both in ends for task in both}
  return [t for t in about['tasks'] if t not in rungs or t in shown]
