"""MuonClip: Muon for the hidden matrices and a cap on the attention logits.

The QK-clip shrinks the query and key weights of a head whose largest attention
logit exceeded tau. It reads that logit from the forward pass, so the caller
hands it to `update` as `max_logits`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base

# [N_l, D, heads, Dh] and [N_l, heads, Dh]: heads stand before the width.
_RANKS = {'kernel': 4, 'bias': 3}

# Pytree of optax.contrib.MuonDimensionNumbers or None, or params to one.
DimensionNumbers = Any | Callable[[base.Params], Any]


class QKClipState(NamedTuple):
  """What the QK-clip saw and did; per layer and query head, [N_l, H]."""
  update_count: jax.Array  # [] int32 updates
  nonfinite_count: jax.Array  # [] int32 updates with a NaN or +inf logit
  last_max: jax.Array  # [N_l, H] float32 max_logits of the last update
  last_factor: jax.Array  # [N_l, H] float32 gamma of the last update, (0, 1]
  max_ever: jax.Array  # [N_l, H] float32 largest logit but for NaN and +inf
  clip_count: jax.Array  # [N_l, H] int32 updates that clipped this head

  @property
  def ever_clipped(self) -> jax.Array:
    """[N_l, H] bool, heads that were clipped at least once."""
    return self.clip_count > 0


def qk_clip(
    tau: chex.Numeric,
    *,
    attention: tuple[str, ...],
    head_order: str = 'repeat') -> optax.GradientTransformationExtraArgs:
  """Rescales the query and key weights of heads whose logits exceed tau.

  With S the largest visible attention logit of a query head, signed,

    gamma_i = tau / S_i if S_i > tau, else 1
    k_g = sqrt(max_{i in g} gamma_i),    q_i = gamma_i / k_g

  and W <- q_i (W + u) for query head i, W <- k_g (W + u) for key head g, their
  biases alike, u being the updates that come in. Every logit of head i becomes
  gamma_i times itself: q_i k_g = gamma_i, also where query heads share a key
  head, and no head without need is touched. With one key head per query head
  both factors are sqrt(gamma_i), as in "Kimi K2: Open Agentic Intelligence" by
  the Kimi Team (https://arxiv.org/abs/2507.20534), algorithm 1, which doesn't
  treat shared key heads.

  It must come last in a chain: nothing that rescales updates may follow. S
  stems from the weights before the update, so the next forward pass may exceed
  tau by the growth of that one update. A NaN or +inf in S clips nothing.

  Args:
    tau: [] positive threshold on the logits; may be traced.
    attention: keys of the block in the parameters that holds 'query' and
      'key', each with a 'kernel' [N_l, D, heads, Dh] and maybe a 'bias'
      [N_l, heads, Dh].
    head_order: which key head query head h reads: 'repeat' h // (H / K),
      'tile' h % K.

  Returns:
    A transformation with state QKClipState, whose `update` wants params and,
    by keyword, max_logits [N_l, H]. Updates of query and key are float32 at
    least, those of heads that aren't clipped keep their bits.

  Raises:
    ValueError: unknown head_order or a tau that isn't positive; from init and
      update a block that is missing, has QK-norm, other parameters or shapes
      than these, or max_logits of another shape. TypeError: no max_logits.
  """
  if head_order not in ('repeat', 'tile'):
    raise ValueError(f'{head_order=}: must be repeat or tile')
  if isinstance(tau, (int, float)) and not tau > 0:
    raise ValueError(f'{tau=}: must be positive')

  def init(params):
    shape = _checked_block(params, attention)['query']['kernel'].shape
    return _initial_state((shape[0], shape[2]))

  def update(updates, state, params=None, *, max_logits, **extra):
    del extra
    if params is None:
      raise ValueError('qk_clip needs params: call update(..., params)')
    block = _checked_block(params, attention)
    max_logits = _checked_logits(max_logits, block)
    gamma = _gamma(max_logits, tau)
    factors = _split(gamma, block['key']['kernel'].shape[2], head_order)
    changes = dict(_block(updates, attention))
    for name, factor in factors.items():
      changes[name] = _rescaled(changes[name], block[name], factor)
    updates = _with_block(updates, attention, changes)
    return updates, _next_state(state, max_logits, gamma)

  return optax.GradientTransformationExtraArgs(init, update)


def muon_clip(
    learning_rate: chex.Numeric,
    *,
    adam_learning_rate: chex.Numeric,
    weight_decay: chex.Numeric,
    momentum: chex.Numeric,
    adam_b1: float,
    adam_b2: float,
    dimension_numbers: DimensionNumbers,
    attention: tuple[str, ...],
    tau: chex.Numeric,
    qk_clip: str = 'off',  # pylint: disable=redefined-outer-name
) -> optax.GradientTransformationExtraArgs:
  """Muon on hidden matrices, Adam on all else, then the QK-clip.

    M <- mu M + G
    W <- W - eta (0.2 sqrt(max(n, m)) NewtonSchulz(M) + lambda W)

  for a matrix of n inputs and m outputs, so that an update has a root mean
  square of about 0.2 eta. See "Kimi K2: Open Agentic Intelligence" by the Kimi
  Team (https://arxiv.org/abs/2507.20534), algorithm 1. Newton-Schulz are the 5
  steps of "Muon" by Jordan (https://kellerjordan.github.io/posts/muon/), in
  the dtype of the gradients.

  Args:
    learning_rate: [] eta, of the matrices that have dimension numbers.
    adam_learning_rate: [] of all other parameters, which have no weight decay.
    weight_decay: [] lambda.
    momentum: [] mu in [0, 1), without Nesterov's step.
    adam_b1: decay of Adam's first moment.
    adam_b2: decay of Adam's second moment.
    dimension_numbers: pytree of optax.contrib.MuonDimensionNumbers, None where
      Adam takes over, or a function from params to one. Axes that aren't named
      are batch axes.
    attention: see `qk_clip`.
    tau: [] see `qk_clip`.
    qk_clip: 'weights', or 'off' for Muon alone.

  Returns:
    A transformation; its `update` takes max_logits, and needs them to clip.
    Every number but adam_b1 and adam_b2 may be traced.

  Raises:
    ValueError: unknown qk_clip.
  """
  muon = optax.contrib.muon(
      learning_rate,
      beta=momentum,
      weight_decay=weight_decay,
      nesterov=False,
      adam_b1=adam_b1,
      adam_b2=adam_b2,
      adam_learning_rate=adam_learning_rate,
      muon_weight_dimension_numbers=dimension_numbers,
      consistent_rms=0.2)
  return followed_by_clip(muon, qk_clip, tau=tau, attention=attention)


def followed_by_clip(
    transformation: optax.GradientTransformation, mode: str, *,
    tau: chex.Numeric,
    attention: tuple[str, ...]) -> optax.GradientTransformationExtraArgs:
  """The transformation, then the QK-clip if mode is 'weights'.

  Args:
    transformation: a whole optimizer, with learning rate and weight decay.
    mode: 'weights', or 'off': max_logits are accepted and ignored.
    tau: [] see `qk_clip`.
    attention: see `qk_clip`.

  Raises:
    ValueError: unknown mode.
  """
  if mode == 'off':
    return optax.with_extra_args_support(transformation)
  if mode == 'weights':
    clip = qk_clip(tau, attention=attention)
    return optax.with_extra_args_support(optax.chain(transformation, clip))
  raise ValueError(f'qk_clip={mode!r}: must be off or weights')


def _initial_state(shape):
  return QKClipState(
      update_count=jnp.int32(0),
      nonfinite_count=jnp.int32(0),
      last_max=jnp.full(shape, -jnp.inf, jnp.float32),
      last_factor=jnp.ones(shape, jnp.float32),
      max_ever=jnp.full(shape, -jnp.inf, jnp.float32),
      clip_count=jnp.zeros(shape, jnp.int32))


def _next_state(state, max_logits, gamma):
  bad = jnp.isnan(max_logits) | jnp.isposinf(max_logits)
  seen = jnp.where(bad, -jnp.inf, max_logits)
  return QKClipState(
      update_count=optax.safe_increment(state.update_count),
      nonfinite_count=state.nonfinite_count + jnp.any(bad),
      last_max=max_logits,
      last_factor=gamma,
      max_ever=jnp.maximum(state.max_ever, seen),
      clip_count=state.clip_count + (gamma < 1))


def _gamma(max_logits, tau):
  """[N_l, H] in (0, 1]; exactly 1 for S <= tau, NaN and +inf."""
  tau = jnp.asarray(tau, jnp.float32)
  over = (max_logits > tau) & jnp.isfinite(max_logits)
  gamma = tau / jnp.where(over, max_logits, tau)
  # A quotient that underflows to 0 would make 0 / 0 of the query's factor.
  gamma = jnp.maximum(gamma, jnp.finfo(jnp.float32).tiny)
  return jnp.where(over, gamma, 1)


def _split(gamma, num_kv_heads, head_order):
  """Factors of the query heads [N_l, H] and of the key heads [N_l, K]."""
  layers, heads = gamma.shape
  size = heads // num_kv_heads
  shape, axis = (num_kv_heads, size), 2
  if head_order == 'tile':
    shape, axis = (size, num_kv_heads), 1
  grouped = gamma.reshape(layers, *shape)
  key = jnp.sqrt(jnp.max(grouped, axis, keepdims=True))
  query = (grouped / key).reshape(layers, heads)
  return {'query': query, 'key': key.reshape(layers, num_kv_heads)}


def _rescaled(updates, params, factor):
  """Updates that lead to factor * (param + update), their bits kept at 1."""

  def of_leaf(update, param):
    axes = (*range(1, param.ndim - 2), param.ndim - 1)
    scale = jnp.expand_dims(factor, axes)
    # Rounded to bfloat16 the difference would lose most of the scale's digits.
    dtype = jnp.promote_types(param.dtype, jnp.float32)
    update, param = update.astype(dtype), param.astype(dtype)
    return jnp.where(scale < 1, scale * (param + update) - param, update)

  return jax.tree.map(of_leaf, updates, params)


def _block(tree, attention):
  for depth, name in enumerate(attention):
    if name not in tree:
      raise ValueError(f'{attention=}: no {name!r} among '
                       f'{sorted(tree)} below {attention[:depth]}')
    tree = tree[name]
  return tree


def _with_block(tree, attention, block):
  """Copy of the nested dicts with another block at its place."""
  if not attention:
    return block
  name, *rest = attention
  return {**tree, name: _with_block(tree[name], rest, block)}


def _checked_block(params, attention):
  """The block of attention, if the rescaling of its weights is defined."""
  block = _block(params, attention)
  norms = {'query_norm', 'key_norm'} & set(block)
  if norms:
    raise ValueError(
        f'qk_clip on a block with {sorted(norms)}: a norm on queries or keys '
        'undoes any rescaling of their weights, which would shrink without '
        "end; turn one of the two off (qk_clip='off')")
  for name in ('query', 'key'):
    shapes = jax.tree.map(jnp.shape, _block(block, (name,)))
    if 'kernel' not in shapes or any(
        len(shape) != _RANKS.get(leaf, 0) for leaf, shape in shapes.items()):
      raise ValueError(
          f'{attention + (name,)} must hold kernel [N_l, D, heads, Dh] and '
          f'maybe bias [N_l, heads, Dh], nothing else; got {shapes}')
  heads, kv_heads = (
      block[name]['kernel'].shape[2] for name in ('query', 'key'))
  if heads % kv_heads:
    raise ValueError(f'{kv_heads} key heads must divide {heads} query heads')
  return block


def _checked_logits(max_logits, block):
  layers, _, heads, _ = block['query']['kernel'].shape
  if jnp.shape(max_logits) != (layers, heads):
    raise ValueError(f'max_logits must be [N_l, H] = {(layers, heads)}, one '
                     f'per layer and query head; got {jnp.shape(max_logits)}')
  return jnp.asarray(max_logits, jnp.float32)
