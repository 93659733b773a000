"""Token weights of one batch under several orders of the mean, as a figure."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import means

# Okabe and Ito's colours, which the colour-blind tell apart too.
COLORS = {
  -2: '#0072B2',
  -1: '#56B4E9',
  0: '#000000',
  1: '#E69F00',
  2: '#D55E00',
}


def relative(log_ratio: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
  """[B, T] n w_t, 1 where all tokens of a row count the same.

  Args:
    log_ratio: [B, T] nats.
    mask: [B, T] bool.
    p: order of the mean.
  """
  count = np.sum(mask, axis=1, keepdims=True)
  weights = means.token_weights(jnp.asarray(log_ratio), jnp.asarray(mask), p)
  return np.asarray(count * weights)


def mask_shift(log_ratio: np.ndarray, mask: np.ndarray) -> dict[str, float]:
  """What the order -1 moves a clip by, beside what the law says.

    shift   mean over rows of log M_0 - log M_-1, nats; sigma^2 / 2
    spread  deviation of log M_0 over rows, nats; sigma / sqrt(n)

  The law holds where the tokens of a row are independent; sigma is the root of
  the mean within-row variance, n the harmonic mean of the rows' tokens.

  Args:
    log_ratio: [B, T] nats.
    mask: [B, T] bool, of two rows or more that have tokens.

  Returns:
    sigma in nats; law, sigma sqrt(n) / 2; measured, shift over spread;
    shift_over_law and spread_over_law, of each by itself. NaN where no
    log-ratio spreads.
  """
  rows = [
    row[used].astype(np.float64)
    for row, used in zip(log_ratio, mask)
    if used.any()
  ]
  sigma = np.sqrt(np.mean([np.var(row) for row in rows]))
  root = np.mean([1 / len(row) for row in rows]) ** -0.5
  shift = np.mean(
    [np.mean(row) + np.log(np.mean(np.exp(-row))) for row in rows]
  )
  spread = np.std([np.mean(row) for row in rows], ddof=1)
  with np.errstate(divide='ignore', invalid='ignore'):
    found = {
      'sigma': sigma,
      'law': sigma * root / 2,
      'measured': shift / spread,
      'shift_over_law': 2 * shift / sigma**2,
      'spread_over_law': spread * root / sigma,
    }
  return {name: float(value) for name, value in found.items()}


def draw(log_ratio: np.ndarray, mask: np.ndarray) -> Any:
  """The weight of each token, and how many of a row count, for each of COLORS.

  Args:
    log_ratio: [B, T] nats, of a batch whose ratios have moved.
    mask: [B, T] bool; rows without a token aren't drawn.

  Returns:
    A matplotlib figure.
  """
  # An extra, so maybe not there.
  from matplotlib import figure  # noqa: PLC0415

  weights = {p: relative(log_ratio, mask, p) for p in COLORS}
  picture = figure.Figure(figsize=(7.5, 3.5), layout='constrained')
  left, right = picture.subplots(1, 2, width_ratios=(3, 2))
  _draw_tokens(left, log_ratio[mask], {p: w[mask] for p, w in weights.items()})
  _draw_rows(right, mask, weights)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
    axes.title.set_fontsize('medium')
  return picture


def _draw_tokens(axes, log_ratio, weights):
  """Relative weight of each token against its log-ratio."""
  # The extreme orders first, or they would hide the ones between them.
  for p in sorted(weights, key=abs, reverse=True):
    axes.scatter(
      log_ratio, weights[p], s=16, color=COLORS[p], linewidths=0, alpha=0.8
    )
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
      color=COLORS[p],
      linewidth=2,
      label=f'p = {p}'.replace('-', '\N{MINUS SIGN}'),
    )
  axes.set_title('How many tokens of a row count')
  axes.set_xlabel('effective sample size, % of the tokens')
  axes.set_ylabel('rows with at most this, %')
  axes.set_ylim(0, 100)
  axes.set_xlim(0, 101)
  axes.legend(frameon=False, loc='upper left')
