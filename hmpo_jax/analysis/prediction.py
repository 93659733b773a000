"""Whether one number predicts drawdowns beyond others, seed by seed.

A logistic regression is fitted on all seeds but one and scores the steps of
that one; the area under the ROC curve (AUC) of all such scores with the number,
less that without, is what it adds. Nothing is compared across rungs: they have
intercepts of their own, and the AUC is over pairs of steps of one rung, one
that a drawdown follows and one that none does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import drawdowns

FALSE_ALARMS = 0.1  # share of the runs in which an alarm is set to be false
LEAST_SEEDS = 3  # with a drawdown
BASES = {
  'diagnostics': drawdowns.ASKED,
  'diagnostics, step and fall': drawdowns.ASKED + drawdowns.KNOWN,
}
_RIDGE = 1.0  # on coefficients of standardised values
_RIDGE_OF_RUNGS = 1e-2  # on their intercepts, which else could be infinite
_NUM_NEWTON = 25  # steps at most
_CONVERGED = 1e-6  # largest change of a coefficient
# What is left of a number beside others is rounding, below this share of it.
_ROUNDING = 1e-4


class Increment(NamedTuple):
  """What a number adds to the AUC, with its interval."""

  estimate: float
  low: float
  high: float


class Regression(NamedTuple):
  """What regressions on some numbers see."""

  inputs: np.ndarray  # [n, k] of each step, standardised; rungs come last
  ridge: np.ndarray  # [k]
  follows: np.ndarray  # [n] bool
  rungs: np.ndarray  # [n] int
  seeds: np.ndarray  # [n] int, below the number of seeds


def table(
  rows: pandas.DataFrame, *, num_resamples: int = 100
) -> pandas.DataFrame:
  """What each gap adds to each of BASES, and the detectors' rules beside it.

  All is of the rungs that have a drawdown: the others have no pair of steps to
  tell apart, and their intercept runs away.

  Args:
    rows: of `drawdowns.rows`.
    num_resamples: of the bootstrap.

  Returns:
    base, predictor ('' for the base alone); auc; increment over the base with
    low and high, see `increment`; warned, the share of the drawdowns with an
    alarm before; lead, median steps from the first alarm to the drawdown;
    false_alarms, the share of the runs with an alarm in a step that no drawdown
    follows within AHEAD. NaN where there is nothing to tell it from.

  Raises:
    ConfigError: fewer than LEAST_SEEDS seeds have a drawdown.
  """
  having = rows.loc[rows['follows'], 'seed'].nunique()
  if having < LEAST_SEEDS:
    raise config_lib.ConfigError(
      f'{having} seeds have a drawdown of the training reward: must be '
      f'{LEAST_SEEDS} or more, as one is left out'
    )
  rows = rows[rows.groupby('rung')['follows'].transform('any')]
  lines = []
  for base, names in BASES.items():
    alone = regression(rows, names)
    lines.append({'base': base, 'predictor': ''} | _told(rows, alone))
    for extra in drawdowns.GAPS:
      both = regression(rows, names, extra)
      gain = increment(alone, both, num_resamples=num_resamples)
      lines.append(
        {
          'base': base,
          'predictor': extra,
          'increment': gain.estimate,
          'low': gain.low,
          'high': gain.high,
        }
        | _told(rows, both)
      )
  for name in drawdowns.DETECTORS:
    fired = rows[name].to_numpy()
    lines.append(
      {'base': '', 'predictor': name, 'auc': auc(regression(rows, ()), fired)}
      | _alarms(rows, fired > 0)
    )
  columns = (
    'base',
    'predictor',
    'auc',
    'increment',
    'low',
    'high',
    'warned',
    'lead',
    'false_alarms',
  )
  return pandas.DataFrame(lines, columns=columns)


def regression(
  rows: pandas.DataFrame, names: Sequence[str], extra: str = ''
) -> Regression:
  """A regression on some numbers and, where it is named, one more.

  It sees the numbers and their squares, in deviations around the mean of their
  rung. The extra one enters by what powers up to the fourth of the others don't
  explain in a least-squares fit, so that no smooth function of one of them is
  news, and the ridge weighs it as any other. None of this looks at drawdowns.

  Args:
    rows: of `drawdowns.rows`.
    names: of columns.
    extra: column to add, '' for none.
  """
  rungs = pandas.factorize(rows['rung'])[0]

  def scaled(values, least=0.0):
    table_ = pandas.Series(values)
    values = (table_ - table_.groupby(rungs).transform('mean')).to_numpy()
    width = np.std(values)
    return values / width if width > least else np.zeros_like(values)

  linear = [scaled(rows[name].to_numpy(np.float64)) for name in names]
  powers = [scaled(x**power) for power in (2, 3, 4) for x in linear]
  inputs = linear + powers[: len(linear)]
  if extra:
    new = scaled(rows[extra].to_numpy(np.float64))
    basis = np.stack(linear + powers, axis=1)
    inputs.append(
      scaled(new - basis @ np.linalg.lstsq(basis, new)[0], _ROUNDING)
    )
  intercepts = np.eye(rungs.max() + 1)[rungs]
  return Regression(
    inputs=np.concatenate([np.stack(inputs, 1), intercepts], 1)
    if inputs
    else intercepts,
    ridge=np.repeat(
      [_RIDGE, _RIDGE_OF_RUNGS], [len(inputs), intercepts.shape[1]]
    ),
    follows=rows['follows'].to_numpy(bool),
    rungs=rungs,
    seeds=pandas.factorize(rows['seed'])[0],
  )


def out_of_seed(
  model: Regression, weights: np.ndarray | None = None
) -> np.ndarray:
  """Scores of each step by a regression on the steps of all other seeds.

  Args:
    model: from `regression`.
    weights: [S] how often each seed counts; once each if None.

  Returns:
    [n] log-odds without the intercept of the rung; 0 for a seed of weight 0.
  """
  return _left_out(model, weights, with_thresholds=False)[0]


def increment(
  base: Regression,
  both: Regression,
  *,
  num_resamples: int = 100,
  alpha: float = 0.05,
  seed: int = 0,
) -> Increment:
  """By how much the AUC of one regression exceeds that of another.

  The interval is the estimate with quantiles of the bootstrap over seeds, each
  resample fitted and left out anew, around their mean: a resample has fewer
  seeds to learn from, so its own AUC is lower.

  Args:
    base: the regression without a number.
    both: that with it.
    num_resamples: of the bootstrap.
    alpha: 1 - level of the interval.
    seed: of the bootstrap's random numbers.
  """

  def found(weights):
    values = [auc(m, out_of_seed(m, weights), weights) for m in (both, base)]
    return values[0] - values[1]

  count = base.seeds.max() + 1
  estimate = found(np.ones(count))
  draws = np.random.default_rng(seed).multinomial(
    count, np.full(count, 1 / count), size=num_resamples
  )
  resampled = np.array([found(draw.astype(np.float64)) for draw in draws])
  resampled = resampled[np.isfinite(resampled)]
  if not resampled.size:  # no pair of steps in any of them
    return Increment(estimate, np.nan, np.nan)
  low, high = np.quantile(
    resampled - np.mean(resampled), [alpha / 2, 1 - alpha / 2]
  )
  return Increment(estimate, estimate + low, estimate + high)


def auc(
  model: Regression, scores: np.ndarray, weights: np.ndarray | None = None
) -> float:
  """Share of the pairs of steps of one rung that scores order rightly.

  A pair is a step that a drawdown follows and one that none does; a tie is a
  half.

  Args:
    model: whose steps they are.
    scores: [n].
    weights: [S] how often each seed counts; once each if None.

  Returns:
    NaN without a pair.
  """
  weight = np.ones(len(scores)) if weights is None else weights[model.seeds]
  hits = total = 0.0
  for rung in np.unique(model.rungs):
    at = model.rungs == rung
    _, place = np.unique(scores[at], return_inverse=True)
    follows, count = model.follows[at], weight[at]
    quiet = np.bincount(place, count * ~follows)
    below = np.cumsum(quiet) - quiet / 2
    hits += np.sum((count * below[place])[follows])
    total += np.sum(quiet) * np.sum(count[follows])
  return float(hits / total) if total else np.nan


def _left_out(model, weights=None, with_thresholds=True):
  """Scores [n] by regressions without a step's seed; its threshold [n]."""
  count = model.seeds.max() + 1
  weights = np.ones(count) if weights is None else weights
  values, thresholds = np.zeros((2, len(model.seeds)))
  coefficients = np.zeros(len(model.ridge))
  used = np.sum(model.ridge == _RIDGE)
  for seed in np.flatnonzero(weights):
    others = np.where(np.arange(count) == seed, 0, weights)[model.seeds]
    # From that of another seed it takes fewer steps to the same point.
    coefficients = _fitted(model, others, coefficients)
    scores = model.inputs[:, :used] @ coefficients[:used]
    out = model.seeds == seed
    values[out] = scores[out]
    if not with_thresholds:
      continue
    quiet = ~out & ~model.follows
    runs = [model.rungs[quiet], model.seeds[quiet]]
    highest = pandas.Series(scores[quiet]).groupby(runs).max()
    # Without a quiet step of another seed nothing tells what is too high.
    thresholds[out] = (
      np.quantile(highest, 1 - FALSE_ALARMS) if len(highest) else np.inf
    )
  return values, thresholds


def _fitted(model, weights, start):
  """[k] coefficients of the regression with weights [n] of the steps."""
  kept = weights > 0
  inputs, follows, weights = (
    model.inputs[kept],
    model.follows[kept],
    weights[kept],
  )
  coefficients = start
  for _ in range(_NUM_NEWTON):
    share = (1 + np.tanh(inputs @ coefficients / 2)) / 2
    slope = (
      inputs.T @ (weights * (follows - share)) - model.ridge * coefficients
    )
    curvature = (inputs.T * (weights * share * (1 - share))) @ inputs + np.diag(
      model.ridge
    )
    change = np.linalg.solve(curvature, slope)
    # Newton's own step may lead too far where all odds are extreme.
    change /= max(1, np.max(np.abs(change)))
    coefficients = coefficients + change
    if np.max(np.abs(change)) < _CONVERGED:
      break
  return coefficients


def _told(rows, model):
  """AUC and alarms of a regression."""
  scores, thresholds = _left_out(model)
  return {'auc': auc(model, scores)} | _alarms(rows, scores > thresholds)


def _alarms(rows, alarms):
  """How alarms [n] stand to the drawdowns."""
  runs = ['rung', 'seed']
  ends = rows.groupby(runs)['drawdown'].first()
  given = rows[alarms]
  leads = (ends - given.groupby(runs)['step'].min()).dropna()
  false = given[~given['follows']].groupby(runs).ngroups
  falls = ends.notna().sum()
  return {
    'warned': len(leads) / falls if falls else np.nan,
    'lead': leads.median() if len(leads) else np.nan,
    'false_alarms': false / len(ends),
  }
