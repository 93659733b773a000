"""MuonClip: Muon for the hidden matrices and a cap on the attention logits.

The QK-clip shrinks the query and key weights of a head whose largest attention
logit exceeded tau. It reads that logit from the forward pass, so the caller
hands it to `update` as `max_logits`.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from hmpo_jax.ops import reductions
from hmpo_jax.optim import arguments
from hmpo_jax.optim import muon
from hmpo_jax.optim import qk_weights

MODES = ('off', 'weights', 'gain')
# A run has exploded once so many updates in a row saw a logit above
# monitor_tau.
EXPLODED_AFTER = 10


class QKClipState(NamedTuple):
  """What the QK-clip saw and did.

  Arrays per head are [N_l, H], or [H] for a single layer, and stand in the
  structure of the blocks of attention where there are several.
  """

  update_count: jax.Array  # [] int32 updates
  clipped_count: jax.Array  # [] int32 updates that clipped any head
  nonfinite_count: jax.Array  # [] int32 updates with a NaN or +inf logit
  over_count: jax.Array  # [] int32 updates with a logit above monitor_tau
  over_in_a_row: jax.Array  # [] int32 the last ones of these, without a gap
  exploded: jax.Array  # [] bool: EXPLODED_AFTER in a row, at any time
  smallest_factor: jax.Array  # [] float32 smallest gamma of all updates
  last_max: Any  # per head, float32 max_logits of the last update
  last_factor: Any  # per head, float32 gamma of the last update, (0, 1]
  max_ever: Any  # per head, float32 largest logit but for NaN and +inf
  clip_count: Any  # per head, int32 updates that clipped this head

  @property
  def ever_clipped(self) -> Any:
    """Per head, bool: whether it was clipped at least once."""
    return jax.tree.map(lambda count: count > 0, self.clip_count)


def qk_clip(
  tau: chex.Numeric | Callable[[jax.Array], chex.Numeric],
  *,
  attention: qk_weights.Blocks,
  mode: str = 'weights',
  alpha: chex.Numeric = 0.5,
  monitor_tau: chex.Numeric | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Rescales the query and key weights of heads whose logits exceed tau.

  With S the largest visible attention logit of a query head, signed,

    gamma_i = tau / S_i if S_i > tau, else 1
    k_g = (max_{i in g} gamma_i)^(1 - alpha),    q_i = gamma_i / k_g

  and W <- q_i (W + u) for query head i, W <- k_g (W + u) for key head g, their
  biases alike, u being the updates that come in. Every logit of head i becomes
  gamma_i times itself: q_i k_g = gamma_i, also where query heads share a key
  head, and no head without need is touched. With one key head per query head
  and alpha = 1/2 both factors are sqrt(gamma_i), as in "Kimi K2: Open Agentic
  Intelligence" by the Kimi Team (https://arxiv.org/abs/2507.20534), algorithm
  1, which doesn't treat shared key heads.

  A norm on queries and keys undoes any rescaling of their weights: there mode
  'gain' rescales its gains in their place. Gains that all heads share allow one
  gamma for the layer, the smallest.

  It follows any optimizer and must come last in a chain: nothing that rescales
  updates may follow. Where gradients are accumulated over several calls, as by
  `optax.MultiSteps`, the caller has to hand the maximum over all of them to the
  last. S stems from the weights before the update, so the next forward pass may
  exceed tau by the growth of that one update. A NaN or +inf in S clips nothing.

  Args:
    tau: [] positive threshold on the logits, inf for none, or a function from
      the number of updates before this one to it; may be traced.
    attention: where the weights lie: a qk_weights.Attention, a pytree of them
      for several blocks, or a function from params to one of these.
    mode: 'weights', 'gain', or 'off': nothing is rescaled, the state still
      tells what was seen.
    alpha: [] the queries' share of the rescaling, from 0 to 1.
    monitor_tau: [] threshold of the counts in the state, which doesn't depend
      on the mode; tau if not given.

  Returns:
    A transformation with state QKClipState, whose `update` wants params and,
    by keyword, max_logits: [N_l, H], or [H] for a single layer, in the
    structure of the blocks. Updates of rescaled weights are float32 at least,
    also those of bfloat16 parameters, which `optax.apply_updates` takes but not
    a wrapper that wants the dtypes that came in; those of heads that aren't
    clipped keep their bits.

  Raises:
    ValueError: unknown mode, tau or monitor_tau that isn't a positive number,
      alpha outside [0, 1]; from init and update a block that doesn't fit the
      parameters or the mode, or max_logits of another structure or shape.
    TypeError: from update, no max_logits.
  """
  _check_arguments(tau, mode, alpha, monitor_tau)

  def init(params):
    return _initial_state(_checked_blocks(attention, mode, params))

  def update(updates, state, params=None, *, max_logits=None, **extra):
    del extra
    if params is None:
      raise ValueError('qk_clip needs params: call update(..., params)')
    blocks = _checked_blocks(attention, mode, params)
    max_logits = _checked_logits(max_logits, blocks)
    now = tau(state.update_count) if callable(tau) else tau
    gammas = jax.tree.map(
      functools.partial(_gamma, now, mode),
      blocks,
      max_logits,
      is_leaf=qk_weights.is_block,
    )
    if mode != 'off':
      updates = _rescaled_tree(updates, params, blocks, gammas, mode, alpha)
    threshold = now if monitor_tau is None else monitor_tau
    return updates, _next_state(state, max_logits, gammas, threshold)

  return optax.GradientTransformationExtraArgs(init, update)


def muon_clip(
  learning_rate: chex.Numeric,
  *,
  tau: chex.Numeric | Callable[[jax.Array], chex.Numeric],
  attention: qk_weights.Blocks,
  mode: str = 'weights',
  alpha: chex.Numeric = 0.5,
  monitor_tau: chex.Numeric | None = None,
  **muon_options,
) -> optax.GradientTransformationExtraArgs:
  """Muon on hidden matrices, AdamW on all else, then the QK-clip.

  See "Kimi K2: Open Agentic Intelligence" by the Kimi Team
  (https://arxiv.org/abs/2507.20534), algorithm 1.

  Args:
    learning_rate: [] of the hidden matrices.
    tau: [] largest attention logit that is left alone; see `qk_clip`.
    attention: the weights of queries and keys; see `qk_clip`.
    mode: 'weights', 'gain' or 'off'; see `qk_clip`.
    alpha: [] the queries' share of the rescaling.
    monitor_tau: [] updates with a logit above it are counted.
    **muon_options: of `muon.muon`.

  Returns:
    A transformation whose `update` wants params and max_logits.
  """
  return optax.with_extra_args_support(
    optax.chain(
      muon.muon(learning_rate, **muon_options),
      qk_clip(
        tau,
        attention=attention,
        mode=mode,
        alpha=alpha,
        monitor_tau=monitor_tau,
      ),
    )
  )


def undone(
  params: Any,
  factors: Any,
  *,
  attention: qk_weights.Blocks,
  mode: str = 'weights',
  alpha: chex.Numeric = 0.5,
) -> Any:
  """Parameters as they were before `qk_clip` rescaled them, but for rounding.

  Args:
    params: after the update.
    factors: per head, gamma of that update: last_factor of the state; where it
      is 1 the parameters keep their bits.
    attention: the weights of queries and keys, as for `qk_clip`.
    mode: as for `qk_clip`; with 'off' nothing was rescaled.
    alpha: [] the queries' share of the rescaling, as for `qk_clip`.
  """
  if mode == 'off':
    return params
  blocks = _checked_blocks(attention, mode, params)
  leaves = qk_weights.by_path(params)
  for weight, factor, is_stacked in _shares(blocks, factors, mode, alpha):
    param = leaves[weight.path]
    index = qk_weights.index(weight, param.ndim)
    scale = qk_weights.spread(weight, factor, param.shape, is_stacked)
    w = param[index] + weight.offset
    leaves[weight.path] = param.at[index].set(
      jnp.where(scale < 1, w / scale - weight.offset, param[index])
    )
  return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def telemetry(state: QKClipState) -> dict[str, jax.Array]:
  """What a state comes to, as scalars.

  Returns:
    clipped_frac: updates that clipped any head.
    over_frac: updates with a logit above monitor_tau.
    heads_ever_clipped_frac: of all heads of all layers.
    smallest_factor: smallest gamma so far.
    exploded: see QKClipState.
  """
  count = jnp.maximum(state.update_count, 1)
  ever = [x.ravel() for x in jax.tree.leaves(state.ever_clipped)]
  return {
    'clipped_frac': state.clipped_count / count,
    'over_frac': state.over_count / count,
    'heads_ever_clipped_frac': jnp.mean(jnp.concatenate(ever)),
    'smallest_factor': state.smallest_factor,
    'exploded': state.exploded,
  }


def _initial_state(blocks):
  fill = lambda value, dtype: jax.tree.map(
    lambda block: jnp.full(block.shape, value, dtype),
    blocks,
    is_leaf=qk_weights.is_block,
  )
  # A buffer of their own for each, so that a jitted step can donate the state.
  zero = lambda: jnp.zeros((), jnp.int32)
  return QKClipState(
    update_count=zero(),
    clipped_count=zero(),
    nonfinite_count=zero(),
    over_count=zero(),
    over_in_a_row=zero(),
    exploded=jnp.bool_(False),
    smallest_factor=jnp.float32(1),
    last_max=fill(-jnp.inf, jnp.float32),
    last_factor=fill(1, jnp.float32),
    max_ever=fill(-jnp.inf, jnp.float32),
    clip_count=fill(0, jnp.int32),
  )


def _next_state(state, max_logits, gammas, monitor_tau):
  flat = lambda tree: jnp.concatenate(
    [leaf.ravel() for leaf in jax.tree.leaves(tree)]
  )
  largest = reductions.nan_max(flat(max_logits))
  gamma = jnp.min(flat(gammas))
  is_over = ~(largest <= monitor_tau)  # NaN is over too.
  in_a_row = jnp.where(is_over, state.over_in_a_row + 1, 0)
  ever = lambda old, new: jnp.maximum(
    old, jnp.where(_is_bad(new), -jnp.inf, new)
  )
  return QKClipState(
    update_count=optax.safe_increment(state.update_count),
    clipped_count=state.clipped_count + (gamma < 1),
    nonfinite_count=state.nonfinite_count + _is_bad(largest),
    over_count=state.over_count + is_over,
    over_in_a_row=in_a_row,
    exploded=state.exploded | (in_a_row >= EXPLODED_AFTER),
    smallest_factor=jnp.minimum(state.smallest_factor, gamma),
    last_max=max_logits,
    last_factor=gammas,
    max_ever=jax.tree.map(ever, state.max_ever, max_logits),
    clip_count=jax.tree.map(
      lambda count, gamma: count + (gamma < 1), state.clip_count, gammas
    ),
  )


def _is_bad(max_logits):
  """-inf is none: no query saw a key."""
  return jnp.isnan(max_logits) | jnp.isposinf(max_logits)


def _gamma(tau, mode, block, max_logits):
  """Per head in (0, 1]; exactly 1 for S <= tau, NaN and +inf."""
  if mode == 'off':
    return jnp.ones_like(max_logits)
  tau = jnp.asarray(tau, jnp.float32)
  over = (max_logits > tau) & jnp.isfinite(max_logits)
  # No inf / inf: where nothing is over, tau may be infinite.
  gamma = jnp.where(over, tau, 1) / jnp.where(over, max_logits, 1)
  # A quotient that underflows to 0 would make 0 / 0 of the query's factor.
  gamma = jnp.maximum(gamma, jnp.finfo(jnp.float32).tiny)
  gamma = jnp.where(over, gamma, 1)
  query, _, _ = qk_weights.chosen(block, mode)
  if query[0].heads is None:
    smallest = jnp.min(gamma, axis=-1, keepdims=True)
    gamma = jnp.broadcast_to(smallest, gamma.shape)
  return gamma


def _split(gamma, alpha, num_keys):
  """Factors of query heads [..., H] and of key heads [..., num_keys]."""
  *layers, heads = gamma.shape
  alpha = jnp.asarray(alpha, gamma.dtype)
  grouped = gamma.reshape(*layers, num_keys, heads // num_keys)
  key = jnp.max(grouped, -1, keepdims=True) ** (1 - alpha)
  query = (grouped / key).reshape(gamma.shape)
  return query, key.reshape(*layers, num_keys)


def _rescaled_tree(updates, params, blocks, gammas, mode, alpha):
  """The updates, those of all blocks' weights rescaled."""
  leaves = qk_weights.by_path(params)
  changed = qk_weights.by_path(updates)
  if changed.keys() != leaves.keys():
    raise ValueError('qk_clip: updates and params differ in structure')

  for weight, factor, is_stacked in _shares(blocks, gammas, mode, alpha):
    path = weight.path
    changed[path] = _rescaled(
      changed[path], leaves[path], weight, factor, is_stacked
    )
  return jax.tree.unflatten(jax.tree.structure(updates), changed.values())


def _shares(blocks, gammas, mode, alpha):
  """Each weight to rescale, its factors per head, and whether it is stacked."""
  for block, gamma in zip(
    jax.tree.leaves(blocks, is_leaf=qk_weights.is_block),
    jax.tree.leaves(gammas),
    strict=True,
  ):
    queries, keys, alone = qk_weights.chosen(block, mode)
    num_keys = 1 if keys[0].heads is None else block.num_kv_heads
    query, key = _split(gamma, alpha, num_keys)
    for weights, factor in ((queries, query), (keys, key), (alone, gamma)):
      for weight in weights:
        yield weight, factor, block.num_layers is not None


def _rescaled(update, param, weight, factor, is_stacked):
  """Updates that lead to factor * (param + update), their bits kept at 1."""
  # Rounded to bfloat16 the difference would lose most of the scale's digits.
  dtype = functools.reduce(
    jnp.promote_types,
    (jnp.result_type(param), jnp.result_type(update), jnp.float32),
  )
  update = jnp.asarray(update, dtype)
  index = qk_weights.index(weight, param.ndim)
  u, w = update[index], param[index].astype(dtype) + weight.offset
  scale = qk_weights.spread(weight, factor, param.shape, is_stacked)
  return update.at[index].set(jnp.where(scale < 1, scale * (w + u) - w, u))


def _check_arguments(tau, mode, alpha, monitor_tau):
  if mode not in MODES:
    raise ValueError(f'{mode=}: must be one of {", ".join(MODES)}')
  is_positive = lambda x: x > 0
  if not callable(tau):
    arguments.check_number('tau', tau, is_positive, 'positive')
  if monitor_tau is not None:
    arguments.check_number('monitor_tau', monitor_tau, is_positive, 'positive')
  arguments.check_number('alpha', alpha, lambda x: 0 <= x <= 1, 'from 0 to 1')


def _checked_blocks(attention, mode, params):
  blocks = qk_weights.resolve(attention, params)
  if mode != 'off':
    leaves = qk_weights.by_path(params)
    for block in jax.tree.leaves(blocks, is_leaf=qk_weights.is_block):
      qk_weights.check(block, mode, leaves)
    qk_weights.check_distinct(blocks, mode, leaves)
  return blocks


def _checked_logits(max_logits, blocks):
  """Float32 statistics in the structure of the blocks."""
  if max_logits is None:
    raise TypeError(
      'qk_clip needs the largest attention logits of this '
      "update's forward pass: call update(..., max_logits=...)"
    )
  leaves, structure = jax.tree.flatten(blocks, is_leaf=qk_weights.is_block)
  wanted = [block.shape for block in leaves]
  shapes = list(map(jnp.shape, jax.tree.leaves(max_logits)))
  given: Any = jax.tree.structure(max_logits)
  if given != structure or shapes != wanted:
    raise ValueError(
      'max_logits must be [N_l, H], one number per layer and query head: '
      f'{_outline(structure, wanted)}; got '
      f'{_outline(given, shapes)}'
    )
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), max_logits)


def _outline(structure, shapes):
  """A pytree with the shapes of its leaves, in one line."""
  return ' '.join(str(jax.tree.unflatten(structure, shapes)).split())
