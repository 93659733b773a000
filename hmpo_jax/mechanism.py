"""Whether the choice of the mean mattered: gradients of one batch compared."""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax import policy
from hmpo_jax import update
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import ratios

# Names of the losses whose gradients are compared.
LOSSES = ('p1', 'p0', 'pm1', 'current')
_ORDERS = (1., 0., -1.)  # of all but the last
_GEOMETRIC = LOSSES.index('p0')
_PAIRS = (('p1', 'p0'), ('p1', 'pm1'), ('p0', 'pm1'), ('current', 'p1'),
          ('current', 'p0'), ('current', 'pm1'))
# What is asked about most has the shortest names.
_SHORT = {
    'cosine_p0_pm1': 'cosine',
    'cosine_unclipped_p0_pm1': 'cosine_unclipped',
    'norm_ratio_unclipped_pm1_p0': 'norm_ratio',
}

# As low as the lower end of a clip range can be: it must stay below 1.
_NO_CLIP_LOW = 1 - 2.**-20


def _keys():
  for first, second in _PAIRS:
    for name in ('cosine', 'cosine_unclipped', 'mask_disagreement'):
      yield f'{name}_{first}_{second}'
  for name in LOSSES:
    if name != 'p0':
      yield f'norm_ratio_{name}_p0'
      yield f'norm_ratio_unclipped_{name}_p0'
  yield 'sigma'


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
        _named({
            f'norm_ratio{kind}_{name}_p0': None
            for name in LOSSES
            if name != 'p0'
        }))
    for kind in ('', '_unclipped'))


def compare_means(static, learned: update.Learned, hparams: base.HParams,
                  batch: base.Batch) -> base.Metrics:
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
  """

  def forward(params):
    return policy.logprobs_beside_an_update(static, params, batch,
                                            hparams.temperature)

  logprobs, pull_back = jax.vjp(forward, learned.params)
  old_logprobs = jnp.where(batch.is_on_policy, logprobs, batch.old_logprobs)
  batch = batch._replace(old_logprobs=old_logprobs)
  orders = update.row_orders(static, hparams, learned.controls, batch, logprobs,
                             old_logprobs)

  def compare(settings):
    widths, dual_clip = settings
    used = hparams._replace(loss=hparams.loss | {'dual_clip': dual_clip})
    slopes, variance = _slopes(static, used, widths, batch, logprobs, orders)
    # All of them at once: so many gradients are in memory.
    products = _products(jax.lax.map(lambda s: pull_back(s)[0], slopes))
    return products, _disagreements(slopes, batch.mask), variance

  own = (learned.controls.widths, hparams.loss['dual_clip'])
  infinite = jnp.float32(jnp.inf)
  open_ = (clips.Widths(_lowest(static), infinite), infinite)
  both = jax.tree.map(lambda *x: jnp.stack(x), own, open_)
  # One program with one backward pass for all, which share a forward pass.
  products, disagreements, variances = jax.lax.map(compare, both)
  values = {'sigma': jnp.sqrt(variances[0])}
  for name, product in (('', products[0]), ('_unclipped', products[1])):
    values |= _angles(name, product)
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
        log_ratio_max=hparams.loss['log_ratio_max'])

  def current(logprobs):
    loss, _ = update.policy_loss(static, hparams, widths, batch, logprobs,
                                 batch.old_logprobs, orders)
    return loss

  slope = lambda p: jax.grad(power_mean, has_aux=True)(logprobs, p)
  slopes, metrics = jax.lax.map(slope, jnp.array(_ORDERS))
  slopes = jnp.concatenate([slopes, jax.grad(current)(logprobs)[None]])
  return slopes, metrics['log_ratio/row_variance'][0]


def _products(grads):
  """[4, 4] inner products of gradients with a leading axis of 4."""
  flat = [g.reshape(len(LOSSES), -1) for g in jax.tree.leaves(grads)]
  return sum(jnp.matmul(g, g.T, precision='highest') for g in flat)


def _disagreements(slopes, mask):
  """[pairs] shares of rows in which one slope is 0 and the other isn't."""
  passes = dict(zip(LOSSES, slopes != 0))
  rows = jnp.any(mask, axis=1)
  return jnp.stack([
      ratios.row_mean(
          ratios.token_mean(passes[first] != passes[second], mask), rows)
      for first, second in _PAIRS
  ])


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
