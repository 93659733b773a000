"""From the configuration to an optimizer."""

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.optim import muon_clip


def make(optim, hparams: base.HParams, *,
         dimension_numbers: muon_clip.DimensionNumbers,
         attention: tuple[str, ...]) -> optax.GradientTransformationExtraArgs:
  """The optimizer that `config.optim` names.

  The gradients are first scaled down to a global norm of max_grad_norm. Weight
  decay acts on hidden matrices only, which are those with dimension numbers.

  Args:
    optim: hashable part of `config.optim`: name, adam_b1, adam_b2, qk_clip.
    hparams: traced part; max_grad_norm = inf leaves gradients as they are.
    dimension_numbers: see `muon_clip.muon_clip`.
    attention: see `muon_clip.qk_clip`.

  Returns:
    A transformation; its `update` takes max_logits [N_l, H] and needs them if
    qk_clip is 'weights'. The structure of its state depends on `optim` and the
    parameters alone.

  Raises:
    ValueError: unknown name or qk_clip.
  """
  if optim.name == 'muon_clip':
    optimizer = muon_clip.muon_clip(
        hparams.learning_rate,
        adam_learning_rate=hparams.adam_learning_rate,
        weight_decay=hparams.weight_decay,
        momentum=hparams.momentum,
        adam_b1=optim.adam_b1,
        adam_b2=optim.adam_b2,
        dimension_numbers=dimension_numbers,
        attention=attention,
        tau=hparams.tau,
        qk_clip=optim.qk_clip)
  elif optim.name == 'adamw':
    adamw = optax.adamw(
        hparams.learning_rate,
        b1=optim.adam_b1,
        b2=optim.adam_b2,
        weight_decay=hparams.weight_decay,
        mask=_decayed(dimension_numbers))
    optimizer = muon_clip.followed_by_clip(
        adamw, optim.qk_clip, tau=hparams.tau, attention=attention)
  else:
    raise ValueError(f'{optim.name=}: must be muon_clip or adamw')
  clip = _clip_by_global_norm(hparams.max_grad_norm)
  return optax.with_extra_args_support(optax.chain(clip, optimizer))


def clip_state(opt_state: optax.OptState) -> muon_clip.QKClipState | None:
  """The QK-clip's part of an optimizer state, None if nothing is clipped."""
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_clip_state)
  return next(filter(_is_clip_state, nodes), None)


def _is_clip_state(node):
  return isinstance(node, muon_clip.QKClipState)


def _is_spec(node):
  return node is None or isinstance(node, optax.contrib.MuonDimensionNumbers)


def _decayed(dimension_numbers):
  """Function from params to a tree of bool, true on hidden matrices."""

  def mask(params):
    specs = dimension_numbers
    if callable(specs):
      specs = specs(params)
    return jax.tree.map(lambda spec: spec is not None, specs, is_leaf=_is_spec)

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
