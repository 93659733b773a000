"""Phase diagram: which order of the mean estimates the gradient best."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

# Where the colours end: an error so many times that of the best order.
_WORST = 2.0
_TITLES = {'random': 'moved at random', 'learned': 'moved along the gradient'}


def draw(rows: Sequence[Mapping[str, Any]], reward: str = 'share') -> Any:
  """A panel for each direction and length: sigma to the right, p upwards.

  The colour is the mean squared error of the gradient estimate over that of
  the best order at the same sigma. A disc marks the best order, small dots
  those whose error cannot be told from its, a cross the best with infinitely
  many prompts, where the bias alone counts.

  Args:
    rows: of phase.csv, numbers or their text, in any order; see
      experiments/oracle.py.
    reward: which rows to draw.

  Returns:
    A matplotlib figure.

  Raises:
    ValueError: no row has that reward, or a panel lacks a cell.
  """
  # An extra, so maybe not there.
  from matplotlib import colors  # noqa: PLC0415
  from matplotlib import figure  # noqa: PLC0415

  rows = [row for row in rows if row['reward'] == reward]
  if not rows:
    raise ValueError(f'{reward=}: no such row')
  directions = _values(rows, 'direction', str)
  lengths = sorted(_values(rows, 'length', int))
  picture = figure.Figure(
    figsize=(1 + 2 * len(lengths), 1.1 + 2.1 * len(directions)),
    layout='constrained',
  )
  grid = picture.subplots(
    len(directions), len(lengths), squeeze=False, sharex=True, sharey=True
  )
  scale = colors.LogNorm(1, _WORST)
  image = None
  for line, direction in zip(grid, directions):
    for axes, length in zip(line, lengths):
      image = _draw_panel(
        axes,
        scale,
        [
          row
          for row in rows
          if row['direction'] == direction and int(row['length']) == length
        ],
      )
      axes.set_title(f'{length} tokens', fontsize='medium')
    line[0].set_ylabel(f'{_TITLES[direction]}\norder p of the mean')
  for axes in grid[-1]:
    axes.set_xlabel('sigma, nats')
  _add_legends(picture, grid, image)
  return picture


def _values(rows, name, kind):
  """Distinct values of a column in the order of the rows, text in its own."""
  return list(dict.fromkeys(kind(row[name]) for row in rows))


def _draw_panel(axes, scale, rows):
  """The cells of one direction and length, and their marks."""
  sigmas = sorted(set(_values(rows, 'sigma_nats', float)))
  orders = sorted(set(_values(rows, 'p', float)))
  values = np.full((len(orders), len(sigmas)), np.nan)
  marks: dict[str, list[tuple[int, int]]] = {
    'best': [],
    'tied': [],
    'best_limit': [],
  }
  for row in rows:
    x = sigmas.index(float(row['sigma_nats']))
    y = orders.index(float(row['p']))
    values[y, x] = float(row['mse_over_best'])
    for name, places in marks.items():
      if int(row[name]):
        places.append((x, y))
  if np.isnan(values).any():
    raise ValueError('a panel needs a row for each pair of sigma and p')
  image = axes.imshow(
    values, norm=scale, cmap='cividis_r', origin='lower', aspect='auto'
  )
  for name, style in _MARKS.items():
    axes.scatter(*np.transpose(marks[name]), **style)
  axes.set_xticks(range(len(sigmas)), [f'{x:g}' for x in sigmas], rotation=90)
  axes.set_yticks(
    range(len(orders)),
    [f'{p:g}'.replace('-', '\N{MINUS SIGN}') for p in orders],
  )
  return image


# Outlined in black and white: to be seen on every colour.
_MARKS = {
  'tied': {
    'marker': 'o',
    's': 9,
    'facecolor': 'black',
    'edgecolor': 'white',
    'linewidths': 0.6,
    'label': 'as good, within 2 standard errors',
  },
  'best': {
    'marker': 'o',
    's': 42,
    'facecolor': 'white',
    'edgecolor': 'black',
    'label': 'best p',
  },
  'best_limit': {
    'marker': 'x',
    's': 16,
    'color': '#D55E00',
    'label': 'best with infinitely many prompts',
  },
}


def _add_legends(picture, grid, image):
  bar = picture.colorbar(image, ax=grid, extend='max', pad=0.01)
  bar.set_ticks(
    [1, 1.1, 1.2, 1.4, 1.6, 2], labels=['1', '1.1', '1.2', '1.4', '1.6', '2']
  )
  bar.minorticks_off()
  bar.set_label('mean squared error / that of the best p')
  handles, labels = grid[0, 0].get_legend_handles_labels()
  picture.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=3 if grid.shape[1] > 2 else 1,
    frameon=False,
  )
