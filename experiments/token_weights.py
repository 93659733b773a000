"""What an order p does to the tokens of one real batch, as a figure.

  python experiments/token_weights.py --workdir=runs/hmpo

does the step after the last checkpoint of a run again, up to the last update,
whose ratios have moved furthest, prints how far the order moves the clip's mask
beside what the law says, sigma sqrt(n) / 2, and writes token_weights.csv and
token_weights.png (with the `plot` extra) to results/token_weights. Half a
minute on two cores, after the run.
"""

import csv
import importlib.util
import pathlib

from absl import app
from absl import flags
import numpy as np

from hmpo_jax.analysis import token_weights
from hmpo_jax.run import command_line
from hmpo_jax.run import rerun

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', 'results/token_weights', 'Folder of the figure and its table.'
)


def main(_) -> None:
  """Writes the table, and the figure where matplotlib is installed."""
  with command_line.reported():
    log_ratio, mask = _last_minibatch(_WORKDIR.value)
  found = token_weights.mask_shift(log_ratio, mask)
  print(
    f'mask shift over spread: {found["measured"]:.2f}, by the law '
    f'{found["law"]:.2f} (sigma {found["sigma"]:.3f} nats; shift '
    f'{found["shift_over_law"]:.2f} times that of independent tokens, '
    f'spread {found["spread_over_law"]:.2f} times)'
  )
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  _write(out / 'token_weights.csv', log_ratio, mask)
  if importlib.util.find_spec('matplotlib'):
    picture = token_weights.draw(log_ratio, mask)
    picture.savefig(out / 'token_weights.png', dpi=240)
  else:
    print("no figure: pip install -e '.[plot]' first")


def _last_minibatch(workdir):
  """Log-ratios [B, T] and mask of the last update after a run's last step."""
  with rerun.opened(workdir, print) as recorded:
    *_, last = next(recorded.updates())
    return np.asarray(recorded.log_ratio(last)), np.asarray(last.batch.mask)


def _write(file, log_ratio, mask):
  """One line for each token: its row, its log-ratio and n w_t for each p."""
  orders = token_weights.COLORS
  weights = {p: token_weights.relative(log_ratio, mask, p) for p in orders}
  with open(file, 'w', newline='', encoding='utf-8') as stream:
    writer = csv.writer(stream)
    writer.writerow(
      ['row', 'log_ratio_nats'] + [f'relative_weight_p={p}' for p in weights]
    )
    for row, token in np.argwhere(mask):
      values = [log_ratio[row, token]]
      values += [w[row, token] for w in weights.values()]
      writer.writerow([row, *(f'{value:.6g}' for value in values)])


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
