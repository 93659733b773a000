"""Causal softmax attention, without an array of all its logits.

Query t of a head sees the valid keys s <= t, with logits and weights

  z_ts = q_t . k_s / sqrt(Dh),  w_ts = exp(z_ts) / sum_r exp(z_tr),

the mix o_t = sum_s w_ts v_s and the entropy H_t = -sum_s w_ts log w_ts.

With narrow logits a softmax takes z rounded, as in a kernel that holds them so;
its sums are wide as ever, and the largest logits those before they are rounded.
One of +inf makes NaN of its query's row, forward and backward, as inf - inf
does in such a kernel; one of -inf has weight 0; a row of -inf alone sees
nothing, as in FlashAttention.
"""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision
from hmpo_jax.ops import block_attention
from hmpo_jax.ops import narrow
from hmpo_jax.ops import reductions

# Tokens of a block: on CPU its logits then stay in the cache of a core.
_BLOCK_SIZE = 96
# Up to this many tokens all logits are one array; at 80 blocks are faster.
_PLAIN_LENGTH = 64


def causal_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention of each token to those before it and itself.

  Query head h reads key head h // (H // K). Sequences of few tokens take the
  `plain` form, others the `blockwise` one; they agree up to rounding.

  Args:
    query: [B, S, H, Dh] any float dtype; B and S may be 0.
    key: [B, S, K, Dh] of the same dtype; K divides H.
    value: [B, S, K, Dh] of the same dtype.
    valid: [B, S] bool, false on padding, which no token sees. Padding may hold
      any finite numbers.
    block_size: largest number of tokens of a block, positive.
    logits_dtype: one of narrow.DTYPES, that logits are rounded to before the
      softmax, see above.

  Returns:
    mixed: [B, S, H, Dh] in the dtype of the query; sums and softmax are made in
      float32 or better. 0, with gradient 0, for a query that sees nothing.
    max_logits: [H] float32 largest logit of a valid query on a key that it
      sees, before any rounding, -inf if there is none, NaN if one is NaN; has
      no gradient.

  Raises:
    ValueError: block_size is not positive, K does not divide H, or unknown
      logits_dtype.
    AssertionError: shapes or dtypes don't fit.
  """
  options = block_attention.Options(logits_dtype)
  return _attend(options, query, key, value, valid, block_size)[:2]


def causal_attention_and_entropy(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`causal_attention`, and how far each query spreads its weights.

  The arguments, and what it raises, are those of `causal_attention`.

  Returns:
    mixed: see `causal_attention`.
    max_logits: see `causal_attention`.
    entropies: [B, S, H] float32 or better, nats, of the weights of each query:
      from 0, where one key has all, to the log of the number of keys that it
      sees; 0 where it sees none. Has no gradient.
  """
  options = block_attention.Options(logits_dtype, has_entropy=True)
  return _attend(options, query, key, value, valid, block_size)


def _attend(options, query, key, value, valid, block_size):
  _check_block_size(block_size)
  if query.shape[1] <= _PLAIN_LENGTH:
    return _plain(options, query, key, value, valid)
  return _in_blocks(options, query, key, value, valid, block_size)


def plain(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` with an array [B, K, H / K, S, S] of all logits."""
  return _plain(
    block_attention.Options(logits_dtype), query, key, value, valid
  )[:2]


def _plain(options, query, key, value, valid):
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(options, query, key, value, valid)
  if _is_empty(query):
    return _nothing(options, query)
  batch, length, heads, width = query.shape
  grouped = query.reshape(batch, length, key.shape[2], -1, width)
  logits = precision.einsum('bskgd,brkd->bkgsr', grouped, key) / width**0.5
  causal = jnp.tril(jnp.ones((length, length), bool))
  visible = (causal & valid[:, None, :])[:, None, None]
  sees = jnp.any(visible, axis=-1, keepdims=True)
  # Any finite logits will do where nothing is seen: the weights become 0.
  logits = jnp.where(visible | ~sees, logits, -jnp.inf)
  counted = sees[..., 0] & valid[:, None, None, :]
  if options.is_narrow:
    top = reductions.nan_max(jax.lax.stop_gradient(logits), axis=-1)
    logits = narrow.rounded(logits, options.logits_dtype)
    sees = jnp.any(visible & (logits != -jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(sees, logits, 0)
  weights = jnp.where(sees, jax.nn.softmax(logits, axis=-1), 0)
  if not options.is_narrow:
    top = jax.lax.stop_gradient(logits).max(axis=-1)
    # A maximum may lose NaN, of which a softmax makes NaN everywhere.
    top = jnp.where(jnp.isnan(weights[..., 0]), jnp.nan, top)
  mixed = precision.einsum(
    'bkgsr,brkd->bskgd', weights.astype(value.dtype), value
  )
  max_logits = reductions.nan_max(
    jnp.where(counted, top, -jnp.inf), axis=(0, 3)
  )
  entropies = None
  if options.has_entropy:
    entropies = _entropies(logits, sees)
    entropies = entropies.transpose(0, 3, 1, 2).reshape(batch, length, heads)
  return (
    mixed.reshape(query.shape).astype(query.dtype),
    max_logits.reshape(heads).astype(jnp.float32),
    entropies,
  )


def _entropies(logits, sees):
  """[...] of the softmax of logits [..., S], nats; 0 where nothing is seen."""
  below = jax.lax.stop_gradient(logits)
  below -= below.max(axis=-1, keepdims=True)
  weights = jnp.exp(below)
  total = weights.sum(axis=-1)
  # 0 times the lowest number is 0, times -inf it is NaN.
  below = jnp.maximum(below, jnp.finfo(below.dtype).min)
  spread = jnp.sum(weights * below, axis=-1)
  return jnp.where(sees[..., 0], jnp.log(total) - spread / total, 0)


def blockwise(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` in memory linear in S; reverse mode, first order only.

  On CPU few sequences go at once and their blocks stay in the cache; elsewhere
  each step is of all sequences.
  """
  _check_block_size(block_size)
  options = block_attention.Options(logits_dtype)
  return _in_blocks(options, query, key, value, valid, block_size)[:2]


def _in_blocks(options, query, key, value, valid, block_size):
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(options, query, key, value, valid)
  if _is_empty(query):
    return _nothing(options, query)
  num_blocks = -(-query.shape[1] // block_size)
  # Blocks of equal sizes, in whole vectors: less padding at the end.
  size = -(-query.shape[1] // num_blocks)
  return block_attention.attend(
    options, -(-size // 8) * 8, query, key, value, valid
  )


def _is_empty(query):
  """Whether there is no sequence, or none of them has a token."""
  return 0 in query.shape[:2]


def _nothing(options, query):
  """The results where there is nothing to see."""
  entropies = jnp.zeros(query.shape[:3], precision.dtype_of(query))
  return (
    jnp.zeros_like(query),
    jnp.full(query.shape[2], -jnp.inf, jnp.float32),
    entropies if options.has_entropy else None,
  )


def _check_block_size(block_size):
  if block_size < 1:
    raise ValueError(f'{block_size=}: must be positive')


def _check(options, query, key, value, valid):
  narrow.check(options.logits_dtype)
  checks.ranks(4, query=query, key=key, value=value)
  checks.dtypes(query.dtype, key=key, value=value)
  checks.dtypes(bool, valid=valid)
  batch, length, _, width = query.shape
  checks.shapes((batch, length, None, width), key=key)
  checks.shapes((batch, length), valid=valid)
  checks.same_shape(key=key, value=value)
  if query.shape[2] % key.shape[2]:
    raise ValueError(
      f'key heads must divide query heads: {query.shape=} {key.shape=}'
    )
