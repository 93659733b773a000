"""From the configuration to an optimizer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.optim import muon
from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights


def make(optim, hparams: base.HParams, *,
         dimension_numbers: muon.DimensionNumbers,
         attention: qk_weights.Blocks) -> optax.GradientTransformationExtraArgs:
  """The optimizer that `config.optim` names, followed by the QK-clip.

  The gradients are first scaled down to a global norm of max_grad_norm. Weight
  decay acts on hidden matrices only, which are those with dimension numbers.

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
  optimizer = OPTIMIZERS[optim.name].make(optim, hparams, dimension_numbers)
  clip = muon_clip.qk_clip(
      hparams.tau,
      attention=attention,
      mode=optim.qk_clip,
      alpha=hparams.qk_alpha,
      monitor_tau=hparams.monitor_tau)
  return optax.with_extra_args_support(
      optax.chain(_clip_by_global_norm(hparams.max_grad_norm), optimizer, clip))


def _muon_clip(optim, hparams, dimension_numbers):
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
      adam_b2=optim.adam_b2)


def _adamw(optim, hparams, dimension_numbers):
  return optax.adamw(
      hparams.learning_rate,
      b1=optim.adam_b1,
      b2=optim.adam_b2,
      weight_decay=hparams.weight_decay,
      mask=_decayed(dimension_numbers))


class Optimizer(NamedTuple):
  """How one is made, and the keys of `optim` that others may not use."""
  make: Callable[..., optax.GradientTransformation]
  keys: tuple[str, ...]


_ADAM = ('adam_b1', 'adam_b2')
_MUON = ('adam_learning_rate', 'adam_weight_decay', 'momentum', 'nesterov',
         'muon_heads', 'coefficients', 'products')

OPTIMIZERS = {
    'muon_clip': Optimizer(_muon_clip, (*_MUON, *_ADAM)),
    'adamw': Optimizer(_adamw, _ADAM),
}

# Keys of `optim` that at least one of them uses, each once.
KEYS = tuple(dict.fromkeys(key for o in OPTIMIZERS.values() for key in o.keys))


def clip_state(opt_state: optax.OptState) -> muon_clip.QKClipState:
  """The QK-clip's part of an optimizer state."""
  is_state = lambda node: isinstance(node, muon_clip.QKClipState)
  return next(filter(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)))


def _decayed(dimension_numbers):
  """Function from params to a tree of bool, true on hidden matrices."""

  def mask(params):
    specs = muon.specs_of(dimension_numbers, params)
    return jax.tree.map(
        lambda spec: spec is not None, specs, is_leaf=muon.is_spec)

  return mask


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
        lambda g: jnp.where(over, g * factor.astype(g.dtype), g),
        updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)
