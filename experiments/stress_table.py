"""Does the QK-clip hold attention logits that explode, and how closely?

  python experiments/stress_table.py --workdir=runs/stress_table

runs stress.py with and without the clip, five seeds each, and stress.py:long
once each; writes stress.csv, overshoot.csv and, with the `plot` extra, the
figure stress.png there and prints the tables of docs/muonclip.md. Repeated, it
continues.
About 15 minutes on two cores.

A head that exceeds tau, S > tau, was at most at tau on the minibatch before, as
the clip left it. overshoot.csv holds for each such head what led from there to
S: S / tau is `left` (at most 1: what the clip left on the last minibatch, over
tau) times `growth` (what the update and the clips of other heads made of it on
the same minibatch) times `spread` (the next minibatch against the last, with
the same weights). `fresh` is 1 where the next minibatch is the first of another
rollout.
"""

import csv
import importlib.util
import itertools
import pathlib

from absl import app
from absl import flags
import jax
import numpy as np

from hmpo_jax.analysis import overshoot
from hmpo_jax.config import files as config_files
from hmpo_jax.run import command_line
from hmpo_jax.run import records as run_records
from hmpo_jax.run import rerun
from hmpo_jax.run import trainer
from hmpo_jax.training import policy

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/stress_table', 'Folder of the run folders and the tables.'
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 5, 'Seeds of the short task, from 0.', lower_bound=1
)
_CONFIG = flags.DEFINE_string(
  'config',
  str(pathlib.Path(__file__).parent.parent / 'configs' / 'stress.py'),
  'Configuration that takes short and long as its argument.',
)
_LONG = flags.DEFINE_bool('long', True, 'Whether to run the long task too.')

_MODES = {'clip': 'weights', 'no clip': 'off'}
_COLUMNS = (
  'max_logit',
  'exploded',
  'heldout_reward_first',
  'heldout_reward_last',
)  # of the summary
_STEPS_AFTER = 20  # that are recomputed to measure the overshoot


def main(_) -> None:
  """Runs what is missing, then writes and prints the tables."""
  workdir = pathlib.Path(_WORKDIR.value)
  with command_line.reported():
    rows, parts, curves = _runs(workdir)
  _write(workdir / 'stress.csv', list(rows[0]), [row.values() for row in rows])
  _write(
    workdir / 'overshoot.csv',
    ['seed', 'fresh', 'left', 'growth', 'spread'],
    parts,
  )
  parts = np.reshape(parts, (-1, 5))
  print(_table(rows))
  if len(parts):
    print(_overshoot_table(*parts.T[1:]))
  else:
    print(f'no head exceeded tau in {_STEPS_AFTER} steps after the last')
  if importlib.util.find_spec('matplotlib'):
    _draw(workdir / 'stress.png', curves, *parts.T[1:])
  else:
    print("no figure: pip install -e '.[plot]' first")


def _runs(workdir):
  """Rows of stress.csv and of overshoot.csv, and the curves of all runs."""
  plan = [('short', seed) for seed in range(_SEEDS.value)]
  plan += [('long', 0)] * _LONG.value
  rows, parts, curves = [], [], {}
  for (length, seed), mode in itertools.product(plan, _MODES):
    folder = workdir / f'{length}-{mode.replace(" ", "_")}-{seed}'
    tau, summary = _run(workdir, folder, length, mode, seed)
    logits = _logits(folder)
    curves[length, mode, seed] = logits / tau
    told = {key: summary[key] for key in _COLUMNS}
    rows.append(
      {'task': length, 'arm': mode, 'seed': seed}
      | overshoot.against_tau(logits, tau)
      | told
      | {'skipped': sum(summary['skipped'].values())}
    )
    if (length, mode) == ('short', 'clip'):
      parts += [(seed, *pair) for pair in _overshoots(folder, tau)]
  return rows, parts, curves


def _run(workdir, folder, length, mode, seed):
  """tau and summary of one run, made now or before."""
  config = config_files.load(
    f'{_CONFIG.value}:{length}',
    {
      'optim.qk_clip': _MODES[mode],
      'seed': str(seed),
      'warm_start.folder': str(workdir.absolute() / 'warm_start'),
    },
  )
  return config.optim.tau, trainer.train(config, folder)


def _logits(folder):
  """[steps, updates] largest attention logit of each update."""
  records = run_records.read(folder)
  return np.array([record['qk/max_logit_per_update'] for record in records])


def _overshoots(folder, tau):
  """[n, 4] fresh, left, growth and spread in the steps after a run's last."""
  with rerun.opened(folder, print) as recorded:
    static, hparams = recorded.programs.static, recorded.programs.hparams

    @jax.jit
    def logits(params, batch):
      return policy.forward(
        static,
        params,
        batch.tokens,
        batch.valid,
        batch.mask,
        hparams.temperature,
      ).max_logits

    def of_pair(one, two, is_fresh):
      found = overshoot.factors(
        np.asarray(logits(one.learned.params, one.batch)),
        np.asarray(logits(two.learned.params, one.batch)),
        np.asarray(logits(two.learned.params, two.batch)),
        tau,
      )
      return np.insert(found, 0, is_fresh, axis=1)

    starts = [
      (start, number == 0)
      for step in recorded.updates(_STEPS_AFTER)
      for number, start in enumerate(step)
    ]
    return np.concatenate(
      [
        of_pair(one, two, is_fresh)
        for (one, _), (two, is_fresh) in itertools.pairwise(starts)
      ]
    )


def _write(file, header, rows):
  with open(file, 'w', newline='', encoding='utf-8') as stream:
    writer = csv.writer(stream)
    writer.writerow(header)
    for row in rows:
      writer.writerow(
        [f'{value:.6g}' if isinstance(value, float) else value for value in row]
      )


def _table(rows):
  """Markdown: range over the seeds of each arm."""
  lines = [
    '| task | arm | runs | steps above tau | later updates below 1.15 tau | '
    'largest of them / tau | largest logit | held-out reward |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for (task, arm), group in itertools.groupby(
    sorted(rows, key=lambda row: (row['task'] == 'long', row['arm'])),
    key=lambda row: (row['task'], row['arm']),
  ):
    lines.append(_table_row(task, arm, list(group)))
  return '\n'.join(lines)


def _table_row(task, arm, rows):

  def span(name, form):
    low, high = (format(f(row[name] for row in rows), form) for f in (min, max))
    return low if low == high else f'{low} to {high}'

  mean = lambda name: np.mean([row[name] for row in rows])
  cells = (
    task,
    arm,
    len(rows),
    span('steps_over_tau', '.1%'),
    span('below_115', '.1%'),
    span('largest_after', '.2f'),
    span('max_logit', '.0f'),
    f'{mean("heldout_reward_first"):.2f} to {mean("heldout_reward_last"):.2f}',
  )
  return f'| {" | ".join(map(str, cells))} |'


def _overshoot_table(fresh, *factors):
  """Markdown: medians of the factors, by what they come to."""
  product = np.prod(factors, axis=0)
  lines = [
    '| S / tau | heads | on a new rollout | left by the clip | growth | '
    'spread |',
    '|---|---|---|---|---|---|',
  ]
  for low, high in itertools.pairwise((1, 1.02, 1.05, 1.1, np.inf)):
    chosen = (product > low) & (product <= high)
    label = f'{low} to {high}' if np.isfinite(high) else f'above {low}'
    if np.any(chosen):
      cells = ' | '.join(f'{np.median(x[chosen]):.3f}' for x in factors)
      lines.append(
        f'| {label} | {np.sum(chosen)} | {fresh[chosen].mean():.0%} | {cells} |'
      )
  return '\n'.join(lines)


def _draw(file, curves, fresh, left_by_clip, growth, spread):
  # An extra, so maybe not there.
  from matplotlib import figure  # noqa: PLC0415

  picture = figure.Figure(figsize=(8, 3.4), layout='constrained')
  left, right = picture.subplots(1, 2, width_ratios=(3, 2))
  _draw_curves(left, curves)
  _draw_factors(right, fresh, left_by_clip * growth, spread)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
    axes.title.set_fontsize('medium')
  picture.savefig(file, dpi=240)


def _draw_curves(axes, curves):
  """Largest logit of each update over tau, every run of the short task."""
  colors = {'no clip': '#D55E00', 'clip': '#0072B2'}
  for (task, arm, seed), ratios in curves.items():
    if task == 'short':
      axes.plot(
        ratios.ravel(),
        color=colors[arm],
        linewidth=0.7,
        label=arm if seed == 0 else None,
      )
  axes.axhline(1, color='black', linewidth=0.8, linestyle='--')
  axes.set_yscale('log')
  axes.set_yticks([0.2, 0.5, 1, 2, 3], [0.2, 0.5, 1, 2, 3])
  axes.minorticks_off()
  axes.set_title('Largest attention logit of an update')
  axes.set_xlabel('update')
  axes.set_ylabel('S / tau')
  axes.legend(frameon=False)


def _draw_factors(axes, fresh, same, spread):
  """Both steps to S, with the lines on which S is 1 and 1.15 tau."""
  for is_fresh, color, label in (
    (0, '#56B4E9', 'same rollout'),
    (1, '#000000', 'new rollout'),
  ):
    chosen = fresh == is_fresh
    axes.scatter(
      same[chosen],
      spread[chosen],
      s=10,
      color=color,
      linewidths=0,
      alpha=0.6,
      label=label,
    )
  low, high = axes.get_xlim()
  limits = axes.get_ylim()
  line = np.linspace(low, high, 100)
  for product, style in ((1.0, '--'), (1.15, ':')):
    axes.plot(
      line,
      product / line,
      color='black',
      linewidth=0.8,
      linestyle=style,
      label=f'S = {product:g} tau',
    )
  axes.set_xlim(low, high)
  axes.set_ylim(limits)
  axes.set_title('Heads that exceed tau')
  axes.set_xlabel('same minibatch after the update / tau')
  axes.set_ylabel('spread: next minibatch / same')
  axes.legend(frameon=False, fontsize='small', loc='lower left')


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
