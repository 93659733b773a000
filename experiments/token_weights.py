"""What an order p does to the tokens of one real batch, as a figure.

  python experiments/token_weights.py --workdir=runs/hmpo

does the step after the last checkpoint of a run again, up to the last update,
whose ratios have moved furthest, and writes token_weights.csv and
token_weights.png (with the `plot` extra) to results/token_weights. Half a
minute on two cores, after the run.
"""

import csv
import importlib.util
import pathlib

from absl import app
from absl import flags
import numpy as np

from hmpo_jax import command_line
from hmpo_jax import policy
from hmpo_jax import rerun
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_OUT = flags.DEFINE_string('out', 'results/token_weights',
                           'Folder of the figure and its table.')

# Okabe and Ito's colours, which the colour-blind tell apart too.
_COLORS = {
    -2: '#0072B2',
    -1: '#56B4E9',
    0: '#000000',
    1: '#E69F00',
    2: '#D55E00',
}


def main(_) -> None:
  """Writes the table, and the figure where matplotlib is installed."""
  with command_line.reported():
    log_ratio, mask = _last_minibatch(_WORKDIR.value)
  weights = {p: np.asarray(_weights(log_ratio, mask, p)) for p in _COLORS}
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  _write(out / 'token_weights.csv', log_ratio, mask, weights)
  if importlib.util.find_spec('matplotlib'):
    _draw(out / 'token_weights.png', log_ratio, mask, weights)
  else:
    print("no figure: pip install -e '.[plot]' first")


def _last_minibatch(workdir):
  """Log-ratios [B, T] and mask of the last update after a run's last step."""
  with rerun.opened(workdir, print) as recorded:
    *_, (learned, batch) = next(recorded.updates())
    static, hparams = recorded.programs.static, recorded.programs.hparams
  logprobs, *_ = policy.forward(static, learned.params, batch.tokens,
                                batch.valid, batch.mask, hparams.temperature)
  ratio = ratios.log_ratio(logprobs, batch.old_logprobs, batch.mask,
                           hparams.loss['log_ratio_max'])
  return np.asarray(ratio.x), np.asarray(batch.mask)


def _weights(log_ratio, mask, p):
  """[B, T] n w_t, 1 where all tokens of a row count the same."""
  count = np.sum(mask, axis=1, keepdims=True)
  return count * means.token_weights(log_ratio, mask, p)


def _write(file, log_ratio, mask, weights):
  """One line for each token: its row, its log-ratio and n w_t for each p."""
  with open(file, 'w', newline='', encoding='utf-8') as stream:
    writer = csv.writer(stream)
    writer.writerow(['row', 'log_ratio_nats'] +
                    [f'relative_weight_p={p}' for p in weights])
    for row, token in np.argwhere(mask):
      values = log_ratio[row, token], *(w[row, token] for w in weights.values())
      writer.writerow([row, *(f'{value:.6g}' for value in values)])


def _draw(file, log_ratio, mask, weights):
  # An extra, so maybe not there.
  from matplotlib import figure  # pylint: disable=import-outside-toplevel,import-error
  picture = figure.Figure(figsize=(7.5, 3.5), layout='constrained')
  left, right = picture.subplots(1, 2, width_ratios=(3, 2))
  _draw_tokens(left, log_ratio[mask], {p: w[mask] for p, w in weights.items()})
  _draw_rows(right, mask, weights)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
    axes.title.set_fontsize('medium')
  picture.savefig(file, dpi=240)


def _draw_tokens(axes, log_ratio, weights):
  """Relative weight of each token against its log-ratio."""
  # The extreme orders first, or they would hide the ones between them.
  for p in sorted(weights, key=abs, reverse=True):
    axes.scatter(
        log_ratio, weights[p], s=16, color=_COLORS[p], linewidths=0, alpha=0.8)
  axes.set_title('The weight of each token')
  axes.set_xlabel('log-ratio, nats (below 0: the token became less likely)')
  axes.set_ylabel('weight in its row / uniform weight')
  axes.set_ylim(bottom=0)


def _draw_rows(axes, mask, weights):
  """Share of the rows whose effective sample size is at most a value."""
  rows = np.any(mask, axis=1)
  count = np.maximum(np.sum(mask, axis=1, keepdims=True), 1)
  share = np.linspace(0, 100, np.sum(rows) + 1)
  for p, values in weights.items():
    size = np.asarray(means.effective_sample_size(values / count, mask))[rows]
    axes.step(
        100 * np.sort(np.append(size, 0)),
        share,
        where='post',
        color=_COLORS[p],
        linewidth=2,
        label=f'p = {p}'.replace('-', '\N{MINUS SIGN}'))
  axes.set_title('How many tokens of a row count')
  axes.set_xlabel('effective sample size, % of the tokens')
  axes.set_ylabel('rows with at most this, %')
  axes.set_ylim(0, 100)
  axes.set_xlim(0, 101)
  axes.legend(frameon=False, loc='upper left')


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
