"""Does a run learn, and do its controls not? Five seeds, three arms each.

  python experiments/learning_table.py --workdir=runs/learning

runs hmpo.py and gspo.py as they are, with learning rate 0, and with advantages
permuted within their groups; writes learning.csv and the figure learning.png
there (with the `plot` extra) and prints the table of the README. Repeated, it
continues. About 15 minutes on two cores. --config.KEY=VALUE overrides a key of
all its runs.
"""

import csv
import importlib.util
import math
import pathlib

from absl import app
from absl import flags
import numpy as np

from hmpo_jax.config import files as config_files
from hmpo_jax.run import command_line
from hmpo_jax.run import records as run_records
from hmpo_jax.run import trainer

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/learning', 'Folder of the run folders and the table.'
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 5, 'Seeds of each arm, from 0.', lower_bound=2
)

_CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
_NAMES = ('hmpo', 'gspo')
_ARMS = {
  'as configured': {},
  'learning rate 0': {
    'optim.learning_rate': '0',
    'optim.adam_learning_rate': '0',
  },
  'advantages permuted': {'advantage.permute': 'true'},
}
_COLUMNS = (
  'heldout_reward_first',
  'heldout_reward_first_stderr',
  'heldout_reward_last',
  'heldout_reward_last_stderr',
  'gap_closed',
  'heldout_exact_first',
  'heldout_exact_last',
  'clip_low_frac',
  'clip_high_frac',
  'sigma',
  'cosine',
  'cosine_unclipped',
  'max_logit',
)


def main(rest) -> None:
  """Runs what is missing, then writes and prints the table."""
  workdir = pathlib.Path(_WORKDIR.value)
  with command_line.reported():
    overrides = dict(map(command_line.override, rest))
    rows = [
      _run(workdir, name, arm, seed, overrides)
      for name in _NAMES
      for arm in _ARMS
      for seed in range(_SEEDS.value)
    ]
  with open(
    workdir / 'learning.csv', 'w', newline='', encoding='utf-8'
  ) as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  print(_table(rows))
  if importlib.util.find_spec('matplotlib'):
    _draw(workdir)
  else:
    print("no figure: pip install -e '.[plot]' first")


def _run(workdir, name, arm, seed, overrides):
  """One run, or the summary of its folder, as a row of the table."""
  config = config_files.load(
    str(_CONFIGS / f'{name}.py'),
    overrides
    | _ARMS[arm]
    | {
      'seed': str(seed),
      'warm_start.folder': str(workdir.absolute() / 'warm_start'),
    },
  )
  summary = trainer.train(config, _folder(workdir, name, arm, seed))
  return {'config': name, 'arm': arm, 'seed': seed} | {
    column: _rounded(summary.get(column)) for column in _COLUMNS
  }


def _rounded(value):
  """NaN for what a run did not measure."""
  return math.nan if value is None else round(value, 5)


def _folder(workdir, name, arm, seed):
  return workdir / f'{name}-{arm.replace(" ", "_")}-{seed}'


def _table(rows):
  """Markdown: mean over seeds, and the range of what must hold for each."""
  lines = [
    '| config | arm | held-out reward | gap to 1 closed (each seed) | '
    'gain / its standard error | exact match | sigma | cosine, '
    'p = 0 and -1 |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for name in _NAMES:
    for arm in _ARMS:
      chosen = [
        row for row in rows if (row['config'], row['arm']) == (name, arm)
      ]
      lines.append(_table_row(name, arm, chosen))
  return '\n'.join(lines)


def _table_row(name, arm, rows):
  column = lambda key: np.array([row[key] for row in rows])
  mean = lambda key: _mean(column(key))
  first, last = column('heldout_reward_first'), column('heldout_reward_last')
  error = np.hypot(
    column('heldout_reward_first_stderr'), column('heldout_reward_last_stderr')
  )
  ratio = (last - first) / error
  gaps = ', '.join(f'{gap:.2f}' for gap in column('gap_closed'))
  return (
    f'| {name} | {arm} | {first.mean():.3f} to {last.mean():.3f} | '
    f'{column("gap_closed").mean():.2f} ({gaps}) | '
    f'{ratio.min():.1f} to {ratio.max():.1f} | '
    f'{column("heldout_exact_first").mean():.3f} to '
    f'{column("heldout_exact_last").mean():.3f} | '
    f'{column("sigma").mean():.2f} | {mean("cosine")} '
    f'({mean("cosine_unclipped")} unclipped) |'
  )


def _mean(values):
  """Of the seeds that measured it; says how many where not all did."""
  known = values[~np.isnan(values)]
  if not known.size:
    return 'not measured'
  count = f' of {known.size} seeds' if known.size < values.size else ''
  return f'{known.mean():.2f}{count}'


def _draw(workdir):
  """Held-out reward against episodes: every seed, and the mean of the arm."""
  # An extra, so maybe not there.
  from matplotlib import figure  # noqa: PLC0415

  styles = {
    ('hmpo', 'as configured'): ('tab:blue', 'HMPO, p = -1'),
    ('gspo', 'as configured'): ('tab:orange', 'GSPO, p = 0'),
    ('hmpo', 'advantages permuted'): ('tab:gray', 'HMPO, permuted advantages'),
  }
  picture = figure.Figure(figsize=(6, 3.2), layout='constrained')
  axes = picture.add_subplot()
  for (name, arm), (color, label) in styles.items():
    curves = [
      _curve(_folder(workdir, name, arm, seed)) for seed in range(_SEEDS.value)
    ]
    for episodes, rewards in curves:
      axes.plot(episodes, rewards, color=color, linewidth=0.5, alpha=0.6)
    mean = np.mean([rewards for _, rewards in curves], axis=0)
    axes.plot(curves[0][0], mean, color=color, linewidth=2, label=label)
  axes.set_xlabel('episodes (responses sampled)')
  axes.set_ylabel('held-out reward, greedy')
  axes.legend(frameon=False)
  picture.savefig(workdir / 'learning.png', dpi=150)


def _curve(folder):
  """Episodes and held-out reward of each evaluation of a run."""
  records = run_records.read(folder)
  size = records[0]['total/episodes']
  found = {r['eval/step']: r['eval/reward'] for r in records}
  return np.array(list(found)) * size, np.array(list(found.values()))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
