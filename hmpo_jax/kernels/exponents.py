"""How the order p of the power mean evolves while a policy trains.

The kind is a traced index into KINDS, so that one compiled program serves a
sweep over all of them:

  fixed      p = start
  linear     from start to end over num_steps rollouts, then end
  cosine     the same along half a cosine
  learnable  gradient ascent on the objective J in p, see `after_update`
  matched    solved for each row from its clipped fraction, see `of_rows`
  adaptive   one step up, down or none for each rollout, see `after_step`
  replayed   in rollout k the k-th value of a path, another run's orders: the
             yoked control, which has an adaptive run's values of p without
             their hanging on what happens

A rollout calls `at_step`, then for each update `of_rows` before the loss and
`after_update` behind it, then `after_step`; all of them whatever the kind.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import matched
from hmpo_jax.kernels import precision
from hmpo_jax.kernels import ratios

KINDS = (
  'fixed',
  'linear',
  'cosine',
  'learnable',
  'matched',
  'adaptive',
  'replayed',
)
_LEARNABLE, _MATCHED, _ADAPTIVE = range(3, 6)
_SIZE_WINDOW = 100  # gradients in the average of their size
MAX_GAPS = 128  # that are kept for their quantiles


class Settings(NamedTuple):
  """What a kind needs, traced; each kind ignores the others' fields.

  Values to start from, and why. Schedules: 2 to -2 over 500 rollouts, those of
  HoelderPO (https://arxiv.org/abs/2605.12058). Bounds -2 and 2: the same range.
  rate 0.1: dJ/dp is about sigma^2 / (2 sqrt(B)), 0.005 for 32 rows whose
  log-ratios scatter by 0.25 nats, so that 2,000 updates of one sign move p by
  1; normalized 0.01, see `after_update`. pull 0: the bounds hold p already.
  gap_low 0.01 and gap_high 0.05: the gap is about sigma^2, here for 0.1 and
  0.22 nats; as quantiles 0.25 and 0.75. Windows of 5 and 25 and trend
  0.1: the averages of independent gaps differ by a quarter of their scatter, so
  that where gaps scatter by 20% a tenth is two standard deviations. step_size
  0.05: from 1 to -1 in 40 rollouts.
  """

  kind: jax.Array  # [] int32 index into KINDS
  start: jax.Array  # [] p of the first rollout; any real number
  end: jax.Array  # [] p of a schedule from rollout num_steps on
  num_steps: jax.Array  # [] rollouts of a schedule; below 1 counts as 1
  rate: jax.Array  # [] learnable: change of p per unit of dJ/dp, or of ...
  normalize: jax.Array  # [] bool, learnable: ... its size in this run
  sign: jax.Array  # [] learnable: 1, or -1 for the placebo
  pull: jax.Array  # [] learnable: towards prior, in units of dJ/dp per p
  prior: jax.Array  # [] learnable: p to which it is pulled
  low: jax.Array  # [] least p that learnable and adaptive may reach
  high: jax.Array  # [] greatest
  gap_low: jax.Array  # [] adaptive: nats, below it p may rise
  gap_high: jax.Array  # [] adaptive: nats, above it p falls
  # [] bool, adaptive: both are quantiles, in [0, 1], of the run's last gaps
  gap_quantiles: jax.Array
  trend: jax.Array  # [] adaptive: relative excess of fast that is a rise
  fast_window: jax.Array  # [] rollouts, at least 1, of the fast average
  slow_window: jax.Array  # [] rollouts, above fast_window, of the slow one
  step_size: jax.Array  # [] adaptive: change of p per decision
  # [S] replayed: p of rollouts 0 to S - 1, S at least 1; the last one stays.
  path: jax.Array


class State(NamedTuple):
  """What persists from update to update and from rollout to rollout."""

  p: jax.Array  # [] order in use; of kind matched start, which no row uses
  gap_fast: jax.Array  # [] nats, average of the last gaps
  gap_slow: jax.Array  # [] nats, average of more of them
  gaps: jax.Array  # [MAX_GAPS] nats, the last of these, newest last
  num_gaps: jax.Array  # [] int32 gaps in the averages
  gradient_size: jax.Array  # [] average of |dJ/dp| over the last updates
  num_gradients: jax.Array  # [] int32 gradients in it
  ignored_gaps: jax.Array  # [] int32 gaps that were not finite
  ignored_gradients: jax.Array  # [] int32 gradients that were not finite


def index_of(name: str) -> int:
  """The index of a kind.

  Raises:
    ValueError: unknown name.
  """
  if name not in KINDS:
    known = ', '.join(KINDS[:-1])
    raise ValueError(f'{name=}: must be {known} or {KINDS[-1]}')
  return KINDS.index(name)


def init(settings: Settings) -> State:
  """The state before the first rollout, float32."""
  _check(settings)
  # An array for each leaf: a program that donates the state needs them apart.
  zero = lambda dtype=jnp.int32, shape=(): jnp.zeros(shape, dtype)
  return State(
    p=jnp.array(settings.start, jnp.float32),
    gap_fast=zero(jnp.float32),
    gap_slow=zero(jnp.float32),
    gaps=zero(jnp.float32, (MAX_GAPS,)),
    num_gaps=zero(),
    gradient_size=zero(jnp.float32),
    num_gradients=zero(),
    ignored_gaps=zero(),
    ignored_gradients=zero(),
  )


def at_step(settings: Settings, state: State, step: jax.Array) -> State:
  """The state for the updates of one rollout: schedules move on.

  With f = min(step / num_steps, 1) the weight of start is 1 - f (linear) or
  (1 + cos(pi f)) / 2 (cosine), the rest is end's; 'fixed' gives all to start.
  The schedules are those of HoelderPO (https://arxiv.org/abs/2605.12058).
  'replayed' is path[min(step, S - 1)], to the bit.

  Args:
    settings: traced.
    state: after the rollout before, or from `init`.
    step: [] int, finished rollouts.
  """
  _check(settings)
  checks.ranks(0, step=step)
  start, end = (
    jnp.asarray(p, state.p.dtype) for p in (settings.start, settings.end)
  )
  frac = jnp.clip(step / jnp.maximum(settings.num_steps, 1), 0, 1)
  frac = frac.astype(state.p.dtype)
  # Not end + w (start - end): this one is exact at both ends.
  between = lambda w: w * start + (1 - w) * end
  stay = lambda: state.p
  path = jnp.asarray(settings.path, state.p.dtype)
  branches = (
    lambda: start,
    lambda: between(1 - frac),
    lambda: between((1 + jnp.cos(jnp.pi * frac)) / 2),
    stay,
    stay,
    stay,
    lambda: path[jnp.clip(step, 0, len(path) - 1)],
  )
  return state._replace(p=jax.lax.switch(settings.kind, branches))


def of_rows(
  settings: Settings,
  state: State,
  log_ratio: jax.Array,
  mask: jax.Array,
  clipped: jax.Array,
) -> jax.Array:
  """The order of each row: p, or for kind 'matched' one solved for the row.

  With a_t the clipped ratios of a row of n tokens and f the fraction that was
  clipped, p in [0, 1] solves

    ESS(p) = ESS(1) + f (1 - ESS(1)),    ESS(p) = (sum a^p)^2 / (n sum a^2p)

  where ESS falls from 1 at p = 0: p is 1 without and 0 with all tokens clipped,
  and falls with f. That p is a trajectory's own, that its clipped fraction sets
  a target for the effective sample size and that bisection solves for it is
  PMPO, "One Ring" (https://arxiv.org/abs/2601.22521); the map from f to the
  target, the bracket [0, 1], the number of halvings, the sharp p = 1 for rows
  without spread and the stopped gradient are ours: we know its idea, not its
  formulas. Advantages don't enter: a factor common to the row
  leaves its ESS alone.

  Args:
    settings: traced.
    state: from `at_step`.
    log_ratio: [B, T] after the token clip, in nats; ignored off the mask.
    mask: [B, T] bool, true on the tokens that count.
    clipped: [B, T] bool, tokens that the clip stopped; ignored off the mask.

  Returns:
    [B] orders, float32 or better. A solved one is within 1e-6 of the root,
    constant to the gradient, and 1 where a row has no token or a variance
    below 1e-12, which makes all orders equal; else the gradient is that of p.
  """
  _check(settings)
  checks.ranks(2, log_ratio=log_ratio, mask=mask, clipped=clipped)
  checks.same_shape(log_ratio=log_ratio, mask=mask, clipped=clipped)
  checks.dtypes(bool, mask=mask, clipped=clipped)
  dtype = precision.dtype_of(log_ratio)
  log_ratio = jax.lax.stop_gradient(log_ratio.astype(dtype))
  return jax.lax.cond(
    settings.kind == _MATCHED,
    lambda: matched.orders(log_ratio, mask, clipped),
    lambda: jnp.broadcast_to(state.p.astype(dtype), mask.shape[:1]),
  )


def after_update(
  settings: Settings, state: State, row_gradient: jax.Array, rows: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
  """Projected gradient ascent of kind 'learnable'; no other kind moves.

    p <- clip(p + rate (sign dJ/dp - pull (p - prior)), low, high)

  With M_i the mean of row i and w_i its token weights, of the rows unclipped,

    dJ/dp = 1/B sum_i g_i,    g_i = A_i M_i KL(w_i || uniform) / p^2,

  which is about the covariance of A_i with half the variance of the log-ratios
  within row i: 0 on-policy, and no gradient of the reward. Where the two go
  together p raises J with the policy as it is. Hence the bounds, and the
  placebo sign = -1, which goes against it by the same rule: what a run gains
  with either sign, it doesn't owe to the gradient.

  dJ/dp falls with the square of the log-ratios' spread: no one rate serves a
  calm run and a wild one. With `normalize` the rule takes dJ/dp / m in its
  place, m the mean of |dJ/dp| over the last 100 updates, this one included:
  plain until there are as many, exponential after, and unlike a mean square
  nothing that over- or underflows. A common update then moves p by `rate` at
  any scale: where half of it is signal, 0.01 goes 2 far in 50 rollouts of 8
  updates. m = 0 moves nothing; pull is then in units of m.

  Args:
    settings: traced.
    state: that the loss used.
    row_gradient: [B] derivative of the loss, -J, in the order of each row.
    rows: [B] bool, rows that have tokens; no other row counts.

  Returns:
    The state, and metrics for every kind: dJ/dp, its signal-to-noise
    |mean g_i| sqrt(n) / std g_i over the n rows with ddof 1 (0 for fewer than
    two rows or a std of 0), and whether p is at a bound that its kind has. A
    gradient that is not finite shows as 0; it, and a change that overflows to
    no number, leaves p as it is and counts in ignored_gradients.
  """
  _check(settings)
  checks.ranks(1, row_gradient=row_gradient, rows=rows)
  checks.same_shape(row_gradient=row_gradient, rows=rows)
  checks.dtypes(bool, rows=rows)
  ascent = jnp.where(rows, -row_gradient.astype(jnp.float32), 0)
  finite = jnp.isfinite(jnp.sum(ascent))
  ascent = jnp.where(finite, ascent, 0)
  gradient = jnp.sum(ascent)
  count = state.num_gradients + finite
  size = _average(
    state.gradient_size, jnp.abs(gradient), finite, count, _SIZE_WINDOW
  )
  unit = jnp.where(settings.normalize & (size > 0), size, 1)
  force = settings.sign * (gradient / unit) - settings.pull * (
    state.p - settings.prior
  )
  change = settings.rate * force
  finite &= ~jnp.isnan(change)  # 0 times an overflow
  moves = (settings.kind == _LEARNABLE) & finite
  p = _moved(settings, state.p, change, moves)
  bounded = (settings.kind == _LEARNABLE) | (settings.kind == _ADAPTIVE)
  at_bound = bounded & ((p <= settings.low) | (p >= settings.high))
  state = state._replace(
    p=p,
    gradient_size=size.astype(jnp.float32),
    num_gradients=count,
    ignored_gradients=state.ignored_gradients + ~finite,
  )
  return state, {
    'exponent/gradient': gradient,
    'exponent/gradient_snr': _signal_to_noise(ascent, rows),
    'exponent/at_bound': at_bound.astype(jnp.float32),
  }


def after_step(
  settings: Settings, state: State, gap: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
  """The decision of kind 'adaptive', one for each rollout; a rule of ours.

  The gap log A - log H is 0 where all means agree, about the variance of the
  log-ratios within a row, and grows with their tails. With fast and slow two
  averages of it, and rising = fast > (1 + trend) slow,

    down, towards harmonic:  fast > gap_high, or rising and fast > gap_low
    up, towards arithmetic:  fast < gap_low and not rising
    p <- clip(p + step_size (up - down), low, high)

  since a positive order puts the gradient on the largest ratios, which a wide
  gap says to be extreme. Between the thresholds p stays, so that it doesn't
  flip about one of them. The level is read off the fast average and not off
  the last gap: no single rollout decides (a window of 1 lets it).

  An average moves by (gap - average) / min(count, window): the plain mean until
  its window is full, so that nothing is biased to 0 and no trend is seen in
  fewer gaps than the fast window; an exponential average after.

  The gap's level is a matter of learning rate, responses and task. With
  `gap_quantiles` both thresholds are quantiles of this run's own gaps, the last
  slow_window of them but at most MAX_GAPS (linear between neighbours, this gap
  included): a gap that stays as it was moves nothing, and p answers to what is
  wide for this run.

  Args:
    settings: traced.
    state: after the updates of the rollout.
    gap: [] mean over rows of log A - log H, in nats; below 0 by rounding only.

  Returns:
    The state, and metrics for every kind: the decision -1, 0 or 1 (0 for other
    kinds), both averages, fast / slow - 1 (0 where slow is 0), and how many
    gaps and gradients have been ignored. A gap that is not finite decides
    nothing and enters no average.
  """
  _check(settings)
  checks.ranks(0, gap=gap)
  finite = jnp.isfinite(gap)
  count = state.num_gaps + finite
  gap = jnp.where(finite, jnp.maximum(gap, 0), 0).astype(jnp.float32)
  fast = _average(state.gap_fast, gap, finite, count, settings.fast_window)
  slow = _average(state.gap_slow, gap, finite, count, settings.slow_window)
  gaps = jnp.where(finite, jnp.append(state.gaps[1:], gap), state.gaps)
  adapts = finite & (settings.kind == _ADAPTIVE)
  thresholds = _thresholds(settings, gaps, count)
  decision = jnp.where(adapts, _decision(settings, fast, slow, *thresholds), 0)
  state = state._replace(
    p=_moved(settings, state.p, settings.step_size * decision, adapts),
    gap_fast=fast.astype(jnp.float32),
    gap_slow=slow.astype(jnp.float32),
    gaps=gaps,
    num_gaps=count,
    ignored_gaps=state.ignored_gaps + ~finite,
  )
  is_open = state.gap_slow > 0
  ratio = state.gap_fast / jnp.where(is_open, state.gap_slow, 1)
  metrics = {
    'exponent/decision': decision,
    'exponent/gap_fast': state.gap_fast,
    'exponent/gap_slow': state.gap_slow,
    'exponent/gap_trend': jnp.where(is_open, ratio - 1, 0),
    'exponent/ignored_gaps': state.ignored_gaps,
    'exponent/ignored_gradients': state.ignored_gradients,
  }
  return state, {k: v.astype(jnp.float32) for k, v in metrics.items()}


def _check(settings):
  scalars = settings._asdict()
  path = scalars.pop('path')
  checks.ranks(0, **scalars)
  checks.ranks(1, path=path)
  checks.dtypes(int, kind=settings.kind)
  checks.dtypes(
    bool, normalize=settings.normalize, gap_quantiles=settings.gap_quantiles
  )
  if not jnp.size(path):
    raise AssertionError('path is empty: must hold an order')


def _moved(settings, p, change, moves):
  """p within its bounds after a change, or p as it is; in p's dtype."""
  moved = jnp.clip(p + change, settings.low, settings.high)
  return jnp.where(moves, moved, p).astype(p.dtype)


def _average(old, value, counts, count, window):
  """old, moved by the count-th value: a mean until the window is full."""
  moved = old + (value - old) / jnp.clip(count, 1, window)
  return jnp.where(counts, moved, old)


def _thresholds(settings, gaps, count):
  """gap_low and gap_high in nats; NaN before the first gap of a quantile."""
  low, high = settings.gap_low, settings.gap_high
  age = jnp.arange(MAX_GAPS, 0, -1)
  kept = age <= jnp.minimum(count, settings.slow_window)
  quantiles = jnp.nanquantile(
    jnp.where(kept, gaps, jnp.nan),
    jnp.clip(jnp.stack([low, high]).astype(gaps.dtype), 0, 1),
  )
  used = lambda own, given: jnp.where(settings.gap_quantiles, own, given)
  return used(quantiles[0], low), used(quantiles[1], high)


def _decision(settings, fast, slow, gap_low, gap_high):
  rising = fast > (1 + settings.trend) * slow
  down = (fast > gap_high) | (rising & (fast > gap_low))
  up = (fast < gap_low) & ~rising
  return up.astype(jnp.int32) - down.astype(jnp.int32)


def _signal_to_noise(values, rows):
  """|mean| sqrt(n) / std over the rows; values are finite, and 0 elsewhere."""
  # Relative to the largest, equal values leave exactly 0; relative to their
  # spread, the squares neither overflow nor underflow.
  largest = jnp.max(values, where=rows, initial=-jnp.inf)
  offset = jnp.where(rows, values - largest, 0)
  spread = -jnp.min(offset, initial=0)
  varies = (spread > 0) & jnp.isfinite(spread)
  spread = jnp.where(varies, spread, 1)
  scaled, count = offset / spread, jnp.sum(rows)
  centred = jnp.where(rows, scaled - ratios.row_mean(scaled, rows), 0)
  variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
  signal = jnp.abs(ratios.row_mean(values, rows)) / spread
  noise = jnp.sqrt(jnp.where(varies, variance / jnp.maximum(count, 1), 1))
  return jnp.where(varies, signal / noise, 0)
