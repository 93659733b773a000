"""From the configuration to an optimizer."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.optim import muon
from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights


def make(
  optim,
  hparams: base.HParams,
  *,
  dimension_numbers: muon.DimensionNumbers,
  attention: qk_weights.Blocks,
) -> optax.GradientTransformationExtraArgs:
  """The optimizer that `config.optim` names, followed by the QK-clip.

  The gradients are first scaled down to a global norm of max_grad_norm. Weight
  decay acts on hidden matrices only, which are those with dimension numbers.
  The learning rate of the kernels of queries and keys is qk_learning_rate_scale
  times that of the other hidden matrices: a dose of growth for the attention
  logits alone.

  Args:
    optim: hashable part of `config.optim`.
    hparams: traced part; max_grad_norm = inf leaves gradients as they are.
    dimension_numbers: see `muon.muon`.
    attention: see `muon_clip.qk_clip`.

  Returns:
    A transformation; its `update` wants params and max_logits. The structure of
    its state depends on `optim` and the parameters alone.

  Raises:
    ValueError: unknown name or qk_clip.
  """
  if optim.name not in OPTIMIZERS:
    raise ValueError(f'{optim.name=}: must be {" or ".join(OPTIMIZERS)}')
  optimizer = OPTIMIZERS[optim.name].make(
    optim,
    hparams,
    dimension_numbers,
    functools.partial(_factors, hparams.qk_learning_rate_scale, attention),
  )
  clip = muon_clip.qk_clip(
    hparams.tau,
    attention=attention,
    mode=optim.qk_clip,
    alpha=hparams.qk_alpha,
    monitor_tau=hparams.monitor_tau,
  )
  return optax.with_extra_args_support(
    optax.chain(_clip_by_global_norm(hparams.max_grad_norm), optimizer, clip)
  )


def _muon_clip(optim, hparams, dimension_numbers, factors):
  return muon.muon(
    hparams.learning_rate,
    dimension_numbers=dimension_numbers,
    momentum=hparams.momentum,
    nesterov=optim.nesterov,
    coefficients=optim.coefficients,
    dtype=optim.products,
    weight_decay=hparams.weight_decay,
    adam_learning_rate=hparams.adam_learning_rate,
    adam_weight_decay=hparams.adam_weight_decay,
    adam_b1=optim.adam_b1,
    adam_b2=optim.adam_b2,
    factors=factors,
  )


def _adamw(optim, hparams, dimension_numbers, factors):
  # `optax.adamw` but for the factors.
  return optax.chain(
    optax.scale_by_adam(optim.adam_b1, optim.adam_b2),
    optax.add_decayed_weights(
      hparams.weight_decay, _decayed(dimension_numbers)
    ),
    muon.scale_by_rates(hparams.learning_rate, factors),
  )


class Optimizer(NamedTuple):
  """How one is made, and the keys of `optim` that others may not use."""

  make: Callable[..., optax.GradientTransformation]
  keys: tuple[str, ...]


_ADAM = ('adam_b1', 'adam_b2')
_MUON = (
  'adam_learning_rate',
  'adam_weight_decay',
  'momentum',
  'nesterov',
  'muon_heads',
  'coefficients',
  'products',
)

OPTIMIZERS = {
  'muon_clip': Optimizer(_muon_clip, (*_MUON, *_ADAM)),
  'adamw': Optimizer(_adamw, _ADAM),
}

# Keys of `optim` that at least one of them uses, each once.
KEYS = tuple(dict.fromkeys(key for o in OPTIMIZERS.values() for key in o.keys))


def rates_at(hparams: base.HParams, step: jax.Array) -> base.HParams:
  """The settings of one step: its learning rates.

  Step k of N, from 0, has the rates of the first step times
  1 - (1 - decay) min(k / N, 1), which leaves their bits where decay is 1. What
  a controller asks for is such a rate of the first step.

  Args:
    hparams: traced part of the configuration, and of the controller.
    step: [] int32 finished steps.
  """
  frac = jnp.minimum(step / hparams.decay_steps, 1)
  factor = 1 - (1 - hparams.decay) * frac
  return hparams._replace(
    learning_rate=hparams.learning_rate * factor,
    adam_learning_rate=hparams.adam_learning_rate * factor,
  )


def clip_state(opt_state: optax.OptState) -> muon_clip.QKClipState:
  """The QK-clip's part of an optimizer state."""
  is_state = lambda node: isinstance(node, muon_clip.QKClipState)
  return next(filter(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)))


def _decayed(dimension_numbers):
  """Function from params to a tree of bool, true on hidden matrices."""

  def mask(params):
    specs = muon.specs_of(dimension_numbers, params)
    return jax.tree.map(
      lambda spec: spec is not None, specs, is_leaf=muon.is_spec
    )

  return mask


def _factors(scale, attention, updates):
  """A factor on the learning rate for each of the updates."""
  blocks = qk_weights.resolve(attention, updates)
  kernels = {
    weight.path
    for block in jax.tree.leaves(blocks, is_leaf=qk_weights.is_block)
    for weight in (*block.query, *block.key)
    if weight.path[-1] == 'kernel'
  }
  factors = [
    scale if path in kernels else 1.0 for path in qk_weights.by_path(updates)
  ]
  return jax.tree.unflatten(jax.tree.structure(updates), factors)


def _clip_by_global_norm(max_norm):
  """g min(1, max_norm / |g|), the same bits where |g| <= max_norm.

  `optax.clip_by_global_norm` turns finite gradients whose norm overflows into
  NaN when max_norm is inf; here they stay.
  """

  def update(updates, state, params=None):
    del params
    norm = optax.tree.norm(updates)
    over = norm > max_norm
    factor = max_norm / jnp.where(over, norm, 1)
    return jax.tree.map(
      lambda g: jnp.where(over, g * factor.astype(g.dtype), g), updates
    ), state

  return optax.GradientTransformation(optax.init_empty_state, update)
