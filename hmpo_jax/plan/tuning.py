"""Fair settings: each tuned variant at its own best learning rate and eps.

The grid is run on seeds that are used nowhere else. Of each task and variant
that point is chosen whose area under the held-out reward is largest in the
mean over seeds; if it lies on an edge, the grid grows there. With final seeds
the two best points are run on these too, which then decide between them: the
best of many points on few seeds is partly luck.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
from typing import NamedTuple

from hmpo_jax import config as config_lib
from hmpo_jax.plan import design

FOLDER = 'tuning'  # in the plan's folder


class Point(NamedTuple):
  """A point of a grid."""

  learning_rate: float
  eps: float  # of both sides of the clip range


class Result(NamedTuple):
  """What a run of a grid came to; a row of tuning.csv."""

  task: str
  variant: str
  learning_rate: float
  eps: float
  seed: int
  area: float  # under the held-out reward, mean height
  failed: bool
  clip_frac: float  # clipped rows, low and high side; NaN if none was trained
  chosen: bool = False


def overrides_of(point: Point) -> dict[str, float]:
  """The keys of a run that a point sets."""
  return dict(zip(design.TUNED, (point.learning_rate, point.eps, point.eps)))


def grid(tuning: design.Tuning) -> list[Point]:
  """The points that are run first."""
  return [
    Point(rate, eps) for rate in tuning.learning_rates for eps in tuning.eps
  ]


def runs(
  plan: design.Plan,
  task: str,
  name: str,
  points: Iterable[Point],
  seeds: Iterable[int],
) -> list[tuple[Point, design.Run]]:
  """The runs of points of one variant's grid on a task."""
  seeds, planned = list(seeds), []
  for point in points:
    for seed in seeds:
      place = f'lr={point.learning_rate:g},eps={point.eps:g}'
      folder = pathlib.PurePath(FOLDER, task, name, place, f'seed-{seed}')
      overrides = {
        **plan.base,
        **plan.tasks[task],
        **plan.variants[name].overrides,
        **overrides_of(point),
        'seed': seed,
      }
      planned.append((point, design.Run(task, name, seed, folder, overrides)))
  return planned


def ranked(results: Sequence[Result]) -> list[Point]:
  """Points of one task and variant by their mean area, the largest first.

  Of equal ones that with the smallest learning rate, then eps.
  """
  areas: dict[Point, list[float]] = {}
  for result in sorted(results, key=lambda r: (r.learning_rate, r.eps)):
    point = Point(result.learning_rate, result.eps)
    areas.setdefault(point, []).append(result.area)
  mean = lambda point: sum(areas[point]) / len(areas[point])
  return sorted(areas, key=mean, reverse=True)


def best(plan: design.Plan, results: Sequence[Result]) -> Point:
  """The point of one task and variant that its runs are to have.

  Args:
    plan: whose final seeds decide, where there are results of them.
    results: of the whole grid.
  """
  assert plan.tuning
  final = [r for r in results if r.seed in set(plan.tuning.final_seeds)]
  return ranked(final or results)[0]


def extension(points: Sequence[Point], chosen: Point) -> list[Point]:
  """The points to run next: none, unless the best lies on an edge.

  A grid grows by a row or a column, a step of the last ratio beyond the edge. A
  side of one value is no grid and stays.
  """
  rates = sorted({point.learning_rate for point in points})
  widths = sorted({point.eps for point in points})
  new_rate = _beyond(rates, chosen.learning_rate)
  new_eps = _beyond(widths, chosen.eps)
  if new_eps is not None and new_eps >= 1:  # the low side ends at 1
    new_eps = None
  added = [Point(new_rate, eps) for eps in widths] if new_rate else []
  if new_eps:
    added += [Point(rate, new_eps) for rate in rates]
    added += [Point(new_rate, new_eps)] if new_rate else []
  return added


def _beyond(values, value):
  if len(values) < 2:
    return None
  if value == values[0]:
    return _rounded(value**2 / values[1])
  if value == values[-1]:
    return _rounded(value**2 / values[-2])
  return None


def _rounded(value):
  """Two digits: the ratio of a grid is no exact number."""
  return float(f'{value:.2g}')


def eps_that_clips(
  results: Sequence[Result], learning_rate: float, share: float
) -> float:
  """eps at which a variant, at a learning rate, clips a share of its rows.

  Linear in log eps between the points of its grid on both sides of the share;
  where all clip more or all clip less, the end of the grid.

  Raises:
    ConfigError: no run at that learning rate has trained a row.
  """
  shares: dict[float, list[float]] = {}
  for result in results:
    is_known = not math.isnan(result.clip_frac)
    if result.learning_rate == learning_rate and is_known:
      shares.setdefault(result.eps, []).append(result.clip_frac)
  if not shares:
    raise config_lib.ConfigError(
      f'tuning: no run at learning rate {learning_rate:g} has trained a row, '
      'so none tells what it clips'
    )
  widths = sorted(shares)
  means = [sum(shares[eps]) / len(shares[eps]) for eps in widths]
  for i in range(len(widths) - 1):
    high, low = means[i], means[i + 1]  # a wider range clips less
    if low <= share <= high and low != high:
      weight = (high - share) / (high - low)
      log = (1 - weight) * math.log(widths[i]) + weight * math.log(
        widths[i + 1]
      )
      return _rounded(math.exp(log))
  nearest = min(range(len(widths)), key=lambda i: abs(means[i] - share))
  return widths[nearest]


def settings(
  plan: design.Plan, results: Mapping[tuple[str, str], Sequence[Result]]
) -> dict[tuple[str, str], dict[str, float]]:
  """The tuned keys of each (task, variant) that doesn't run at the plan's.

  Args:
    plan: checked.
    results: of the whole grids of (task, variant), for those tuned.
  """
  chosen = {}
  for task in plan.tasks:
    for name, variant in plan.variants.items():
      if variant.settings == design.BASE:
        continue
      of = name if variant.settings == design.OWN else variant.settings
      if (task, of) not in results:
        continue
      point = best(plan, results[task, of])
      if variant.clip_frac:
        point = point._replace(
          eps=eps_that_clips(
            results[task, of], point.learning_rate, variant.clip_frac
          )
        )
      chosen[task, name] = overrides_of(point)
  return chosen


def needed(plan: design.Plan, names: Iterable[str]) -> list[str]:
  """The tuned variants that some variants take their settings from."""
  wanted = set()
  for name in names:
    of = plan.variants[name].settings
    wanted.add(name if of == design.OWN else of)
  return [name for name in design.tuned(plan) if name in wanted]


def marked(results: Sequence[Result], chosen: Point) -> list[Result]:
  """Results of one grid with the chosen point's marked, in a fixed order."""
  order = lambda r: (r.learning_rate, r.eps, r.seed)
  return [
    r._replace(chosen=Point(r.learning_rate, r.eps) == chosen)
    for r in sorted(results, key=order)
  ]
