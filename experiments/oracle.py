"""How far are the means' gradients from the true one? An enumerable task.

  python experiments/oracle.py --workdir=runs/oracle

compares gradient estimates with the exact gradient of the expected reward, for
policies that have moved from the one that sampled by a given spread sigma of
the log-ratios: in a random direction, or along the true gradient. Writes
phase.csv (orders p without a clip, over sigma and length T) and variants.csv
(clips, advantages and controls at few sigmas), a figure of the first for either
reward (with the `plot` extra), and prints both in short. About 3 minutes on two
cores.
"""

import csv
import functools
import importlib.util
import itertools
import math
import pathlib

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax.analysis import estimates
from hmpo_jax.analysis import oracle
from hmpo_jax.analysis import phase
from hmpo_jax.kernels import losses
from hmpo_jax.run import command_line

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/oracle', 'Folder of the tables and the figure.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of policies, directions, responses.')
_VOCAB = flags.DEFINE_integer('vocab_size', 3, 'Tokens.', lower_bound=2)
_LENGTHS = flags.DEFINE_multi_integer(
  'length', [2, 4, 6, 8], 'Tokens of a response.', lower_bound=2
)
_SIGMAS = flags.DEFINE_multi_float(
  'sigma',
  [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6],
  'Root mean within-row variance of the log-ratios, nats.',
  lower_bound=1e-3,
)
_ORDERS = flags.DEFINE_multi_float(
  'p', [-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3], 'Orders of the mean.'
)
_PROMPTS = flags.DEFINE_integer(
  'num_prompts', 4, 'Groups of one estimate.', lower_bound=1
)
_GROUP = flags.DEFINE_integer(
  'group_size', 8, 'Responses of a group.', lower_bound=2
)
_POLICIES = flags.DEFINE_integer(
  'policies', 32, 'Pairs of a policy and a direction.', lower_bound=2
)
_SAMPLES = flags.DEFINE_integer(
  'samples', 1024, 'Groups drawn for each pair.', lower_bound=2
)
_VARIANT_LENGTH = flags.DEFINE_integer(
  'variant_length', 6, 'Tokens of a response in variants.csv.', lower_bound=2
)
_VARIANT_SIGMAS = flags.DEFINE_multi_float(
  'variant_sigma', [0.1, 0.3], 'Sigmas of variants.csv.', lower_bound=1e-3
)

# A clip range that stops nothing; its lower end must stay below 1.
_OPEN = {'clip_eps_low': 1 - 2.0**-20, 'clip_eps_high': math.inf}


def _mean(eps=None, **options):
  """A loss of p, clipped at eps below and above 1."""
  clip = {'clip_eps_low': eps, 'clip_eps_high': eps} if eps else _OPEN
  return lambda p: functools.partial(
    losses.power_mean_loss, p=p, **clip, **options
  )


def _without_order(loss, **options):
  return lambda p: functools.partial(loss, **options)


_WITHIN = {'clip_eps_low': 0.2, 'clip_eps_high': 0.2}
# Name: a loss of p, and the orders it is measured at; 0 where it has none.
_VARIANTS = {
  'no clip': (_mean(), (1.0, 0.0, -1.0)),
  'sequence 0.05': (_mean(0.05), (1.0, 0.0, -1.0)),
  'sequence 0.2': (_mean(0.2), (1.0, 0.0, -1.0)),
  'sequence 0.05 geometric': (
    _mean(0.05, clip_center='geometric'),
    (1.0, 0.0, -1.0),
  ),
  'token 0.2': (_mean(0.2, clip='token'), (1.0, 0.0, -1.0)),
  'token_log 0.4': (_mean(0.4, clip='token_log'), (1.0, 0.0, -1.0)),
  'grpo 0.2': (_without_order(losses.grpo_loss, **_WITHIN), ()),
  'cispo 0.2': (_without_order(losses.cispo_loss, **_WITHIN), ()),
  'sapo': (_without_order(losses.sapo_loss), ()),
  'reinforce': (_without_order(losses.reinforce_loss), ()),
  'product': (_without_order(oracle.product_loss), ()),
}
_LOSSES = flags.DEFINE_multi_enum(
  'loss', list(_VARIANTS), list(_VARIANTS), 'Losses in variants.csv.'
)
# Baseline and scale. What differs by a common factor only would be one row
# twice: the mean leaves (G - 1) / G of the advantage without the response.
_ADVANTAGES = (
  ('mean', 'std'),
  ('mean', 'none'),
  ('leave_one_out', 'none'),
  ('none', 'none'),
)


def main(_) -> None:
  """Measures, writes and prints."""
  out = pathlib.Path(_WORKDIR.value)
  with command_line.reported():
    try:
      oracle.enumerate_task(_VOCAB.value, max(_LENGTHS.value))
      oracle.enumerate_task(_VOCAB.value, _VARIANT_LENGTH.value)
    except ValueError as error:
      command_line.refuse(error)
    out.mkdir(parents=True, exist_ok=True)
  rows = list(_phase_rows())
  _write(out / 'phase.csv', rows)
  print(_phase_table(rows))
  variants = list(_variant_rows())
  _write(out / 'variants.csv', variants)
  print(_variant_table(variants))
  if importlib.util.find_spec('matplotlib'):
    for reward in oracle.REWARDS:
      phase.draw(rows, reward).savefig(out / f'phase_{reward}.png', dpi=160)
  else:
    print("no figure: pip install -e '.[plot]' first")


def _phase_rows():
  """A row for each reward, direction, length, sigma and order."""
  names = oracle.REWARDS, oracle.DIRECTIONS, _LENGTHS.value
  for reward, direction, length in itertools.product(*names):
    found = _measure(
      _VARIANTS['no clip'][0],
      _ORDERS.value,
      _ADVANTAGES[:1],
      _SIGMAS.value,
      reward,
      direction,
      length,
    )
    for column, sigma in enumerate(_SIGMAS.value):
      at = jax.tree.map(lambda x, i=column: x[:, i, 0], found)
      best, tied = _best(at.mse)
      best_limit, _ = _best(at.bias_square)
      for i, p in enumerate(_ORDERS.value):
        ratio = at.mse[:, i].mean() / at.mse[:, best].mean()
        yield (
          {
            'reward': reward,
            'direction': direction,
            'length': length,
            'sigma_nats': sigma,
            'p': p,
          }
          | _cells(jax.tree.map(lambda x, i=i: x[:, i], at))
          | {
            'mse_over_best': round(float(ratio), 5),
            'best': int(i == best),
            'tied': int(tied[i]),
            'best_limit': int(i == best_limit),
          }
          | _sizes()
        )


def _variant_rows():
  """A row for each reward, direction, loss, order, advantage and sigma."""
  names = oracle.REWARDS, oracle.DIRECTIONS, _LOSSES.value
  for reward, direction, name in itertools.product(*names):
    loss, orders = _VARIANTS[name]
    found = _measure(
      loss,
      orders or (0.0,),
      _ADVANTAGES,
      _VARIANT_SIGMAS.value,
      reward,
      direction,
      _VARIANT_LENGTH.value,
    )
    cells = itertools.product(
      enumerate(_ADVANTAGES),
      enumerate(_VARIANT_SIGMAS.value),
      enumerate(orders or ('',)),
    )
    for (a, kind), (q, sigma), (i, p) in cells:
      yield (
        {
          'reward': reward,
          'direction': direction,
          'length': _VARIANT_LENGTH.value,
          'sigma_nats': sigma,
          'loss': name,
          'p': p,
          'baseline': kind[0],
          'scale': kind[1],
        }
        | _cells(jax.tree.map(lambda x, at=(q, a, i): x[:, *at], found))
        | _sizes()
      )


def _measure(loss, orders, kinds, sigmas, reward, direction, length):
  """Quality of arrays [policies, sigmas, advantages, orders] in float64."""
  task = oracle.enumerate_task(_VOCAB.value, length, reward)
  keys = jax.random.split(base.random_key(_SEED.value), _POLICIES.value)
  scenes = _scenes(keys, task, direction, (_SAMPLES.value, _GROUP.value))
  found = _of_scenes(
    scenes, task, jnp.array(sigmas), jnp.array(orders), loss, tuple(kinds)
  )
  moments, norms = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
  return estimates.quality(moments, norms[..., None, None], _PROMPTS.value)


@functools.partial(jax.jit, static_argnames=('direction', 'shape'))
def _scenes(keys, task, direction, shape):
  return jax.lax.map(
    lambda key: oracle.draw_scene(key, task, direction, shape), keys
  )


@functools.partial(jax.jit, static_argnames=('loss', 'kinds'))
def _of_scenes(scenes, task, sigmas, orders, loss, kinds):
  options = [
    {'baseline': baseline, 'scale': scale} for baseline, scale in kinds
  ]
  one = lambda scene: oracle.measure(
    scene, task, sigmas, orders, loss=loss, advantages=options
  )
  return jax.lax.map(one, scenes)


def _best(values):
  """Which column [policies, P] is smallest on average, and which may be too.

  Those whose difference to it is within two of its standard errors.
  """
  best = np.argmin(values.mean(axis=0))
  above = values - values[:, best, None]
  return best, above.mean(axis=0) <= 2 * _stderr(above)


def _stderr(values):
  return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _cells(found):
  """Means over the policies, and the standard error of one."""
  return {
    name: float(f'{np.mean(values):.5g}')
    for name, values in found._asdict().items()
  } | {'mse_stderr': float(f'{_stderr(found.mse):.2g}')}


def _sizes():
  return {
    'num_prompts': _PROMPTS.value,
    'group_size': _GROUP.value,
    'policies': _POLICIES.value,
    'samples': _SAMPLES.value,
    'seed': _SEED.value,
  }


def _write(file, rows):
  with open(file, 'w', newline='', encoding='utf-8') as stream:
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def _phase_table(rows):
  """Markdown: the best order of each cell, and that without noise."""
  sigmas = list(dict.fromkeys(row['sigma_nats'] for row in rows))
  lines = [
    'Best p (best with infinitely many prompts):',
    '',
    f'| reward | moved | T | {" | ".join(f"{x:g}" for x in sigmas)} |',
    '|---' * (3 + len(sigmas)) + '|',
  ]
  key = lambda row: (row['reward'], row['direction'], row['length'])
  for names, group in itertools.groupby(rows, key):
    line = list(group)
    pairs = zip(
      [row['p'] for row in line if row['best']],
      [row['p'] for row in line if row['best_limit']],
    )
    cells = [*names, *(f'{best:g} ({limit:g})' for best, limit in pairs)]
    lines.append(f'| {" | ".join(map(str, cells))} |')
  return '\n'.join(lines)


def _variant_table(rows):
  """Markdown: error (bias) of each loss, of few with all advantages."""
  places = list(dict.fromkeys(map(_place, rows)))
  head = ['loss', 'p', 'baseline, scale', *(' '.join(x) for x in places)]
  lines = ['', f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  name = lambda row: (
    row['loss'],
    str(row['p']),
    f'{row["baseline"]}, {row["scale"]}',
  )
  cells = {
    (
      name(row),
      _place(row),
    ): f'{row["mse"]:.3f} ({max(0, row["bias_square"]):.3f})'
    for row in rows
  }
  for row in dict.fromkeys(map(name, rows)):
    if row[2] == 'mean, std' or row[0] in ('no clip', 'reinforce', 'product'):
      line = *row, *(cells[row, place] for place in places)
      lines.append(f'| {" | ".join(line)} |')
  return '\n'.join(lines)


def _place(row):
  return row['reward'], row['direction'], str(row['sigma_nats'])


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
