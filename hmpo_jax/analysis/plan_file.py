"""plan.json, of whatever version of a plan."""

import json
import pathlib

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import kinds

NAME = 'plan.json'
_NEEDED = (
  'name',
  'question',
  'exploratory',
  'tasks',
  'variants',
  'seeds',
  'contrasts',
  'alpha',
  'target',
  'failure_reward',
  'collapse_margin',
  'horizon',
  'runs',
)
# What a plan.json that is older than a key is read as.
_YOUNGER: dict = {
  'ladders': {},
  'reference': '',
  'margins': {name: kind.margin for name, kind in kinds.KINDS.items()},
  'family': 0,
}
# What runs that no plan asked for are held against.
NO_PLAN = _YOUNGER | {
  'name': 'runs',
  'question': '',
  'exploratory': True,
  'contrasts': [],
  'alpha': 0.05,
  'failure_reward': 0.0,
  'collapse_margin': 0.05,
}


def read(file: pathlib.Path) -> dict:
  """What a plan.json holds, as one of today does.

  Raises:
    ConfigError: none, one that isn't whole, or one that pools its tasks.
  """
  try:
    about = json.loads(file.read_text(encoding='utf-8'))
    missing = [key for key in _NEEDED if key not in about]
  except (OSError, ValueError, TypeError) as error:
    raise config_lib.ConfigError(
      f'{file} is not a plan ({error!r}): --workdir names the folder that '
      'experiments/compare.py wrote'
    ) from error
  if missing or not about['runs']:
    raise config_lib.ConfigError(
      f'{file} is not a whole plan: {", ".join(missing) or "runs"} missing'
    )
  if 'margin' in about:  # of all outcomes, in an older one
    margins = dict.fromkeys(('area', 'collapse'), about['margin'])
    about = {'margins': _YOUNGER['margins'] | margins} | about
  about = _YOUNGER | about
  nowhere = {'task': '', 'minus': ''}
  contrasts = [nowhere | contrast for contrast in about['contrasts']]
  if len(about['tasks']) > 1 and not all(c['task'] for c in contrasts):
    raise config_lib.ConfigError(
      f'{file}: a contrast names no task, as older plans did that pooled '
      'their tasks: give each one a "task", or take the version that ran it '
      f'({about.get("commit", "unknown")})'
    )
  return about | {'contrasts': contrasts}
