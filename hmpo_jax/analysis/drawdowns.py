"""Drawdowns of the training reward, and what is known before them."""

import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import records
from hmpo_jax.run import controllers

WINDOW = 5  # steps of a mean of the training reward
AHEAD = 10  # steps within which a drawdown is to be foreseen
HISTORY = 10  # steps of a history, as in the records by default
# Standard errors that a fall must exceed: fewer than 1 % of runs of 100 steps
# with no trend at all then have a drawdown (8 % with 4).
ERRORS = 5

# What is asked about: the A-H gap beyond these, then beyond these and what
# anyone knows of the run itself.
ASKED = ('variance', 'kl', 'token_ess', 'row_ess')
KNOWN = ('number', 'fall')
GAPS = ('gap', 'history')
DETECTORS = {
  'detector': controllers.FullConvergence,
  'detector_clip': controllers.ClipNormalisedConvergence,
}
_NEEDED = (
  'reward/mean',
  'log_ratio/row_variance',
  'kl_old/k3',
  'token_weight/ess',
  'ratio/mean',
  'ratio/std',
  'agm/log_gap',
  'agm/arithmetic',
  'agm/harmonic',
  'clip/eps_low',
  'clip/eps_high',
)
_LEAST = 1e-12  # below it a number counts as this, in a log
_LEAST_LOSS = 1e-6  # of samples, 1 / ESS - 1, which float32 knows no better


def first(rewards: np.ndarray, margin: float) -> int | None:
  """The step of a run's first drawdown, from 1; None without one.

  It is the first step at which the mean of the last WINDOW rewards (of all so
  far in the first steps) lies below an earlier such mean by more than `margin`
  and by more than ERRORS standard errors of their difference. The error is of a
  step's reward as its changes tell it, by their median absolute value, so that
  a trend or a jump hardly counts.

  Args:
    rewards: [m] training reward of the steps 1 to m, NaN where it is unknown.
    margin: reward, positive.
  """
  if len(rewards) < 2:
    return None
  count = np.minimum(np.arange(1, len(rewards) + 1), WINDOW)
  means = _means(rewards)
  # The median of |x - y| of two Gaussians is .954 of their deviation.
  deviation = np.nanmedian(np.abs(np.diff(rewards))) / 0.9539
  errors = deviation * np.sqrt(1 / count[:, None] + 1 / count)
  falls = means[:, None] - means > np.maximum(margin, ERRORS * errors)
  fallen = np.triu(falls).any(axis=0)  # below an earlier one
  return int(np.argmax(fallen)) + 1 if fallen.any() else None


def _means(rewards):
  """[m] means of the last WINDOW rewards, of all so far in the first steps."""
  return pandas.Series(rewards).rolling(WINDOW, min_periods=1).mean().to_numpy()


def rows(plan: records.Plan) -> pandas.DataFrame:
  """One row for each step of each run before its first drawdown.

  A run that failed has its first drawdown at the failure at the latest. Left
  out are the first WINDOW - 1 steps, steps of which it isn't known whether a
  drawdown follows within AHEAD, and those that measured not all of the below.

  Args:
    plan: with its steps.

  Returns:
    rung (task and variant), seed, step; drawdown, the step of the run's first
    one or NaN; follows, whether that is within the next AHEAD steps; and

      variance   log of the within-row variance of the log-ratios
      kl         log of the KL to the sampler (k3)
      token_ess  log (1 / ESS - 1) of the weights of a row's tokens
      row_ess    the same of the rows' ratios M_i, whose ESS is
                 1 / (1 + (their deviation / their mean)^2)
      number     log of the step
      fall       how far the mean reward is below its best so far
      gap        log of log A - log H
      history    log of the mean gap of the last HISTORY steps in half-widths
                 of the clip range, w of `kernels.agm.iterates`
      detector, detector_clip  1. from the step on at which the rule of
                 `controllers.FullConvergence`, or the clip-normalised one,
                 would have ended the run, else 0. The second sees powers of the
                 rows' mean A and H, where a record has the mean of their
                 powers.

  Raises:
    ConfigError: the plan holds no steps, or lacks a metric.
  """
  missing = [name for name in _NEEDED if name not in plan.steps]
  if missing:
    raise config_lib.ConfigError(
      'no drawdown can be foreseen without the records of runs: '
      f'{", ".join(missing)} missing'
    )
  failed = (
    plan.runs[plan.runs['state'] == records.FAILED]
    .set_index(records.RUN)['end']
    .to_dict()
  )
  parts = [
    _of_run(
      steps.sort_values('step'), plan.about['collapse_margin'], failed.get(name)
    ).assign(rung=f'{name[0]}/{name[1]}', seed=name[2])
    for name, steps in plan.steps.groupby(records.RUN, sort=False)
  ]
  return pandas.concat(parts, ignore_index=True)


def _of_run(steps, margin, failure):
  """The rows of one run; `failure` is the step that ended it, or None."""
  rewards = steps['reward/mean'].to_numpy()
  drawdown = first(rewards, margin) or failure
  number = steps['step'].to_numpy()
  found = _known(steps, rewards).assign(
    step=number,
    drawdown=np.nan if drawdown is None else drawdown,
    follows=False if drawdown is None else number >= drawdown - AHEAD,
  )
  last = number[-1] - AHEAD if drawdown is None else drawdown - 1
  return found[number <= last].dropna(subset=[*ASKED, *KNOWN, *GAPS])


def _known(steps, rewards):
  """What a step's record tells, by name."""
  log = lambda x: np.log(np.maximum(x, _LEAST))
  means = _means(rewards)
  gaps = steps['agm/log_gap'] / _half_width(steps)
  return pandas.DataFrame(
    {
      'variance': log(steps['log_ratio/row_variance']),
      'kl': log(steps['kl_old/k3']),
      'token_ess': np.log(
        np.maximum(
          1 / np.maximum(steps['token_weight/ess'], _LEAST) - 1, _LEAST_LOSS
        )
      ),
      'row_ess': 2
      * log(steps['ratio/std'] / np.maximum(steps['ratio/mean'], _LEAST)),
      'number': np.log(steps['step']),
      'fall': np.fmax.accumulate(means) - means,
      'gap': log(steps['agm/log_gap']),
      'history': log(gaps.rolling(HISTORY, min_periods=1).mean()),
    }
  ).assign(**_detected(steps))


def _half_width(steps):
  """Half the width of the clip range, nats; of one side if one is open."""
  sides = np.stack(
    [
      -np.log1p(-np.minimum(steps['clip/eps_low'], 1 - _LEAST)),
      np.log1p(steps['clip/eps_high']),
    ]
  )
  # An open low side is 1; an open high one is recorded as the largest number.
  is_open = np.stack([steps['clip/eps_low'] >= 1, steps['clip/eps_high'] > 1e9])
  width = np.sum(np.where(is_open, 0, sides), 0) / np.maximum(
    np.sum(~is_open, 0), 1
  )
  return np.where(is_open.all(0), 1, width)


def _detected(steps):
  """Whether each detector would have ended the run by then, 0. or 1."""
  ends = steps[['agm/arithmetic', 'agm/harmonic']].to_numpy()
  powers = ends ** (1 / _half_width(steps))[:, None]
  found = {}
  for (name, detector), values in zip(DETECTORS.items(), (ends, powers)):
    found[name] = _by_rule(detector(), values)
  return found


def _by_rule(detector, values):
  """The answers of a detector to histories of [m, 2] A and H."""
  stopped = []
  known = np.empty((0, 2))
  for value in values:
    if np.isfinite(value).all():  # else the record repeats the histories
      known = np.append(known, [value], axis=0)[-HISTORY:]
    answer = detector(
      {
        f'arithmetic_history{detector.suffix}': known[:, 0],
        f'harmonic_history{detector.suffix}': known[:, 1],
      }
    )
    stopped.append(answer['early_stop']['should_stop'])
  return np.maximum.accumulate(np.array(stopped, np.float64))
