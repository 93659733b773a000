"""Whether the choice of the mean mattered: gradients of one batch compared."""

from collections.abc import Iterator
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios
from hmpo_jax.training import objective
from hmpo_jax.training import policy
from hmpo_jax.training import update

# Names of the losses whose gradients are compared.
LOSSES = ('p1', 'p0', 'pm1', 'current')
_ORDERS = (1.0, 0.0, -1.0)  # of all but the last
_KINDS = ('', '_unclipped')  # of the clip, in names
_GEOMETRIC = LOSSES.index('p0')
_PAIRS = (
  ('p1', 'p0'),
  ('p1', 'pm1'),
  ('p0', 'pm1'),
  ('current', 'p1'),
  ('current', 'p0'),
  ('current', 'pm1'),
)
# What is asked about most has the shortest names.
_SHORT = {
  'cosine_p0_pm1': 'cosine',
  'cosine_unclipped_p0_pm1': 'cosine_unclipped',
  'norm_ratio_unclipped_pm1_p0': 'norm_ratio',
}

# As low as the lower end of a clip range can be: it must stay below 1.
_NO_CLIP_LOW = 1 - 2.0**-20


def _keys():
  for first, second in _PAIRS:
    for name in ('cosine', 'cosine_unclipped', 'mask_disagreement'):
      yield f'{name}_{first}_{second}'
  for name in LOSSES:
    if name != 'p0':
      yield f'norm_ratio_{name}_p0'
      yield f'norm_ratio_unclipped_{name}_p0'
  yield 'sigma'
  yield from (
    f'gradient_variance{kind}_{name}' for kind in _KINDS for name in LOSSES
  )
  yield from ('sigma_sqrt_n', 'shift_over_spread', 'kurtosis')


def _named(values):
  return {
    f'mechanism/{_SHORT.get(name, name)}': value
    for name, value in values.items()
  }


KEYS = tuple(_named(dict.fromkeys(_keys())))
_COSINES = tuple(key for key in KEYS if key.startswith('mechanism/cosine'))
# Ratios to the norm of p0 by one clip, or none: 0 all of them where that is 0.
_RATIOS = tuple(
  tuple(
    _named(
      {f'norm_ratio{kind}_{name}_p0': None for name in LOSSES if name != 'p0'}
    )
  )
  for kind in _KINDS
)


def compare_means(
  static, learned: update.Learned, hparams: base.HParams, batch: base.Batch
) -> base.Metrics:
  """Compares the gradients that four losses have on one batch.

  p1, p0 and pm1 are the power means of order 1, 0 and -1 with a sequence clip
  around 1, mean over rows. 'current' is the loss of the run, whatever its name,
  in all but its KL and its entropy, with the order in use for each row. All
  have the run's own clip range; 'unclipped' stands for the same without a clip,
  so for a difference of the token weights alone.

  Args:
    static: hashable part of the configuration.
    learned: parameters where the gradients are taken, order and clip range.
    hparams: traced part of the configuration.
    batch: one minibatch.

  Returns:
    By the names KEYS, with a and b of LOSSES; for a = p0, b = pm1 the cosines,
    and the unclipped norm_ratio of pm1, have no names of losses behind theirs:
    cosine_a_b, cosine_unclipped_a_b: of the two gradients; 0 if one is 0.
    norm_ratio_a_p0, norm_ratio_unclipped_a_p0: |g_a| / |g_0|; 0 if g_0 is.
      `undefined` tells which of them are.
    mask_disagreement_a_b: share of the rows whose gradient one of the two stops
      and the other doesn't; of a loss that clips tokens, mean over rows of
      that share of its tokens.
    sigma: root mean within-row variance of the log-ratios, nats.
    gradient_variance_a, gradient_variance_unclipped_a: trace of the covariance
      of the rows' gradients, in units of a squared gradient. With c_i what row
      i adds to the gradient g, and R rows that have tokens, it is that of
      G_i = R c_i, whose mean is g:

        sum_i |G_i - g|^2 / (R - 1) = R / (R - 1) (R sum_i |c_i|^2 - |g|^2)

      Were the rows independent, a batch of R of them would have a gradient
      with this over R as its variance. 0 of fewer than two rows.
    sigma_sqrt_n, shift_over_spread, kurtosis: see `shape`.
  """

  def forward(params):
    return policy.logprobs_beside_an_update(
      static, params, batch, hparams.temperature
    )

  logprobs, pull_back = jax.vjp(forward, learned.params)
  old_logprobs = jnp.where(batch.is_on_policy, logprobs, batch.old_logprobs)
  batch = batch._replace(old_logprobs=old_logprobs)
  ratio = ratios.log_ratio(
    logprobs, old_logprobs, batch.mask, hparams.loss['log_ratio_max']
  )
  orders = objective.row_orders(static, hparams, learned.controls, batch, ratio)

  def compare(settings):
    widths, dual_clip = settings
    used = hparams._replace(loss=hparams.loss | {'dual_clip': dual_clip})
    slopes, variance = _slopes(static, used, widths, batch, logprobs, orders)
    # All of them at once: so many gradients are in memory.
    products = _products(jax.lax.map(lambda s: pull_back(s)[0], slopes))
    return products, _disagreements(slopes, batch.mask), variance, slopes

  own = (learned.controls.widths, hparams.loss['dual_clip'])
  infinite = jnp.float32(jnp.inf)
  open_ = (clips.Widths(_lowest(static), infinite), infinite)
  both = jax.tree.map(lambda *x: jnp.stack(x), own, open_)
  # One program with one backward pass for all, which share a forward pass.
  products, disagreements, variances, slopes = jax.lax.map(compare, both)
  values = {'sigma': jnp.sqrt(variances[0])} | shape(ratio.x, batch.mask)
  spreads = _spreads(static, learned.params, hparams, batch, slopes, products)
  for kind, product, spread in zip(_KINDS, products, spreads):
    values |= _angles(kind, product)
    for name, variance in zip(LOSSES, spread):
      values[f'gradient_variance{kind}_{name}'] = variance
  for (first, second), share in zip(_PAIRS, disagreements[0]):
    values[f'mask_disagreement_{first}_{second}'] = share
  return _named({name: values[name] for name in _keys()})


def undefined(values: Mapping[str, float]) -> Iterator[str]:
  """Names of the cosines and ratios that stand at 0 since a gradient is 0.

  Nothing else makes a cosine 0: gradients of thousands of parameters are never
  exactly orthogonal.

  Args:
    values: what `compare_means` returned, by name; others are ignored.
  """
  yield from (name for name in _COSINES if values.get(name) == 0)
  for names in _RATIOS:
    if not any(values.get(name) for name in names):
      yield from (name for name in names if name in values)


def shape(log_ratio: jax.Array, mask: jax.Array) -> base.Metrics:
  """How the log-ratios of a batch are spread, for what an order does to a mask.

    sigma_sqrt_n       sigma sqrt(n), sigma the root of the mean within-row
                       variance, n the harmonic mean of the rows' tokens
    shift_over_spread  mean over rows of log M_0 - log M_-1, over the standard
                       deviation of log M_0 over rows; sigma sqrt(n) / 2 where
                       the tokens of a row are independent, see docs/maths.md
    kurtosis           m_4 / m_2^2 - 3, m_k the mean over all tokens of (x -
                       mean of its row)^k: 0 of a Gaussian of one width

  Args:
    log_ratio: [B, T] nats, 0 off the mask.
    mask: [B, T] bool; rows without a token count nowhere.

  Returns:
    By name, []; 0 where what it divides by is 0. The deviation over rows has
    R - 1 in its divisor.
  """
  rows = jnp.any(mask, axis=1)
  lengths = jnp.sum(mask, axis=1, dtype=log_ratio.dtype)
  geometric = ratios.token_mean(log_ratio, mask)
  centred = jnp.where(mask, log_ratio - geometric[:, None], 0)
  variance = ratios.row_mean(ratios.token_mean(centred**2, mask), rows)
  inverse_length = ratios.row_mean(1 / jnp.maximum(lengths, 1), rows)
  shift = geometric - means.log_power_mean(log_ratio, mask, -1.0)
  deviations = geometric - ratios.row_mean(geometric, rows)
  spread = jnp.sum(jnp.where(rows, deviations**2, 0)) / jnp.maximum(
    jnp.sum(rows) - 1, 1
  )
  # In units of their deviation, whose fourth power could vanish.
  tokens = jnp.maximum(jnp.sum(lengths), 1)
  standard = _ratio(centred, jnp.sqrt(jnp.sum(centred**2) / tokens))
  fourth = jnp.sum(standard**4) / tokens
  return {
    'sigma_sqrt_n': jnp.sqrt(_ratio(variance, inverse_length)),
    'shift_over_spread': _ratio(ratios.row_mean(shift, rows), jnp.sqrt(spread)),
    'kurtosis': jnp.where(fourth > 0, fourth - 3, 0),
  }


def _lowest(static):
  """The width of a low side that stops nothing."""
  is_log = static.loss.clip == 'token_log'
  return jnp.float32(jnp.inf if is_log else _NO_CLIP_LOW)


def _slopes(static, hparams, widths, batch, logprobs, orders):
  """[4, B, T] derivatives of LOSSES in the logprobs; mean row variance []."""

  def power_mean(logprobs, p):
    return losses.power_mean_loss(
      logprobs,
      batch.old_logprobs,
      batch.advantages,
      batch.mask,
      p=p,
      clip_eps_low=widths.eps_low,
      clip_eps_high=widths.eps_high,
      log_ratio_max=hparams.loss['log_ratio_max'],
    )

  def current(logprobs):
    loss, _ = objective.policy_loss(
      static, hparams, widths, batch, logprobs, batch.old_logprobs, orders
    )
    return loss

  slope = lambda p: jax.grad(power_mean, has_aux=True)(logprobs, p)
  slopes, metrics = jax.lax.map(slope, jnp.array(_ORDERS))
  slopes = jnp.concatenate([slopes, jax.grad(current)(logprobs)[None]])
  return slopes, metrics['log_ratio/row_variance'][0]


def _spreads(static, params, hparams, batch, slopes, products):
  """[2, 4] `gradient_variance` from slopes [2, 4, B, T], products [2, 4, 4].

  A row's own gradients need a backward pass of that row: all of them are one
  more forward pass and as many backward passes as there are slopes. In memory
  is one gradient of one row.
  """

  def of_row(row):
    tokens, valid, mask, of_losses = row
    forward = lambda params: (
      policy.forward(
        static,
        params,
        tokens[None],
        valid[None],
        mask[None],
        hparams.temperature,
      ).logprobs
    )
    _, pull_back = jax.vjp(forward, params)
    square = lambda slope: optax.tree.norm(
      pull_back(slope[None])[0], squared=True
    )
    return jax.lax.map(square, of_losses)

  flat = slopes.reshape(-1, *batch.mask.shape).swapaxes(0, 1)
  squares = jax.lax.map(of_row, (batch.tokens, batch.valid, batch.mask, flat))
  total = jnp.sum(squares, axis=0).reshape(products.shape[:2])
  rows = jnp.sum(jnp.any(batch.mask, axis=1), dtype=total.dtype)
  excess = rows * total - jnp.diagonal(products, axis1=1, axis2=2)
  # Rounding can make it negative where all rows pull alike.
  return _ratio(rows * jnp.maximum(excess, 0), rows - 1)


def _products(grads):
  """[4, 4] inner products of gradients with a leading axis of 4."""
  flat = [g.reshape(len(LOSSES), -1) for g in jax.tree.leaves(grads)]
  return sum(jnp.matmul(g, g.T, precision='highest') for g in flat)


def _disagreements(slopes, mask):
  """[pairs] shares of rows in which one slope is 0 and the other isn't."""
  passes = dict(zip(LOSSES, slopes != 0))
  rows = jnp.any(mask, axis=1)
  return jnp.stack(
    [
      ratios.row_mean(
        ratios.token_mean(passes[first] != passes[second], mask), rows
      )
      for first, second in _PAIRS
    ]
  )


def _angles(kind, products):
  """Cosines and ratios of the norms from inner products [4, 4]."""
  norms = jnp.sqrt(jnp.diagonal(products))
  values = {}
  for first, second in _PAIRS:
    i, j = LOSSES.index(first), LOSSES.index(second)
    cosine = _ratio(products[i, j], norms[i] * norms[j])
    values[f'cosine{kind}_{first}_{second}'] = jnp.clip(cosine, -1, 1)
  for name, norm in zip(LOSSES, norms):
    values[f'norm_ratio{kind}_{name}_p0'] = _ratio(norm, norms[_GEOMETRIC])
  return values


def _ratio(value, divisor):
  """value / divisor, 0 where the divisor is 0."""
  return jnp.where(divisor > 0, value / jnp.where(divisor > 0, divisor, 1), 0)
