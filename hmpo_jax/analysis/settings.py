"""What the runs of a plan were set to, in words."""

from collections.abc import Iterator
import math

import pandas

from hmpo_jax.analysis import records

_NAMES = ('learning_rate', 'eps_low', 'eps_high', 'tau', 'monitor_tau')


def phrase(runs: pandas.DataFrame, name: str) -> str:
  """A setting of runs: 'tau = 8', or 'tau = 8 (gspo, hmpo), inf (free)'.

  Args:
    runs: of `records.Plan`.
    name: of a column with a setting.

  Returns:
    '' where no run's folder tells it; `off` for tau without a QK-clip.
  """
  arms: dict[str, dict] = {}
  for run in runs.to_dict('records'):
    value = f'{run[name]:g}'
    if math.isnan(run[name]):
      if name != 'tau' or math.isnan(run['monitor_tau']):
        continue
      value = 'off'
    arms.setdefault(value, {})[run['variant']] = None
  if len(arms) < 2:
    return ''.join(f'{name} = {value}' for value in arms)
  return f'{name} = ' + ', '.join(
    f'{value} ({", ".join(of)})' for value, of in arms.items()
  )


def lines(plan: records.Plan) -> Iterator[str]:
  """Of each task learning rate, clip range, tau and monitor_tau."""
  for task, runs in plan.runs.groupby('task', sort=False):
    known = [
      words for words in (phrase(runs, name) for name in _NAMES) if words
    ]
    on = f'{task}: ' if len(plan.about['tasks']) > 1 else ''
    if known:
      yield f'- {on}{"; ".join(known)}'
