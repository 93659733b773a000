"""How figures look: in print, to the colour-blind, and the same each time."""

from collections.abc import Iterator
import contextlib
import io
from typing import Any
from typing import NamedTuple

import matplotlib
from matplotlib import figure
from PIL import Image

# Okabe and Ito's colours without the yellow, which paper swallows.
_COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
)
_LINES = ('-', '--', '-.', ':')
GRAY = '#777777'
WIDTH = 7.2  # inches, of a page
_SETTINGS: dict[Any, Any] = {
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 'medium',
  'font.size': 9,
  'legend.fontsize': 8,
  'legend.frameon': False,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'hmpo_jax',  # names of parts, else random
}


class Style(NamedTuple):
  """Of one variant, in every figure."""

  color: str
  line: str


def of_variants(variants: list[str]) -> dict[str, Style]:
  """A style for each variant; the first 28 differ."""
  return {
    name: Style(
      _COLORS[i % len(_COLORS)], _LINES[(i + i // len(_COLORS)) % len(_LINES)]
    )
    for i, name in enumerate(variants)
  }


@contextlib.contextmanager
def settings() -> Iterator[None]:
  """Holds while figures are made and saved."""
  with matplotlib.rc_context(_SETTINGS):
    yield


def save(picture: figure.Figure, stem) -> None:
  """Writes stem.png and stem.svg, without the time of day."""
  # Once for both files, as it takes the most time.
  layout = picture.get_layout_engine()
  if layout is not None:
    layout.execute(picture)
    picture.set_layout_engine('none')
  _save_png(picture, f'{stem}.png')
  picture.savefig(f'{stem}.svg', metadata={'Date': None, 'Creator': None})


def _save_png(picture, file):
  """A PNG of at most 256 colors: half the size, and nothing that one sees."""
  pixels = io.BytesIO()
  picture.savefig(pixels, dpi=160, metadata={'Software': None})
  drawn = Image.open(pixels).convert('RGB')
  drawn.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def panels(
  count: int, *, height: float = 2.3, columns: int = 3, sharing: bool = True
) -> tuple[figure.Figure, list]:
  """A figure of a page's width and its axes in reading order.

  Args:
    count: of the panels, at least 1.
    height: inches of a row; one panel alone gets half as much again.
    columns: at most so many panels stand side by side.
    sharing: whether all have the same limits.
  """
  columns = 2 if count == 4 else min(columns, count)
  rows = -(-count // columns)
  tall = height * (1.4 if columns == 1 else 1.1 if columns == 2 else 1)
  picture = figure.Figure(figsize=(WIDTH, tall * rows), layout='constrained')
  grid = picture.subplots(
    rows, columns, sharex=sharing, sharey=sharing, squeeze=False
  )
  for axes in grid.flat[count:]:
    axes.remove()
  # Panels above a gap are the lowest of their column.
  for axes in grid.flat[max(count - columns, 0) : count]:
    axes.xaxis.set_tick_params(labelbottom=True)
  return picture, list(grid.flat[:count])


def use_logarithms(picture: figure.Figure) -> None:
  """Gives axes that share their limits a scale of logarithms, plain numbers."""
  grid = picture.get_axes()
  for axes in grid:
    axes.set_yscale('log')
  low, high = grid[0].get_ylim()
  # 1, 2, 5, 10 or powers of ten, by how many fit.
  parts = (1, 2, 5) if high < 1e3 * low else (1,)
  ticks = [m * 10.0**e for e in range(-9, 9) for m in parts]
  ticks = [t for t in ticks if low <= t <= high]
  for axes in grid:
    axes.set_yticks(ticks, [f'{t:g}' for t in ticks])
    axes.minorticks_off()
