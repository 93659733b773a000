"""Attention of one new token of each sequence to the tokens before it."""

import chex
import jax
import jax.numpy as jnp


def cached_attention(query: jax.Array, shared_keys: jax.Array,
                     shared_values: jax.Array, shared_valid: jax.Array,
                     keys: jax.Array, values: jax.Array,
                     length: jax.Array | int) -> jax.Array:
  """Softmax attention to a prefix that G sequences share, and to their own.

  Sequence b has prefix b // G, query head h reads key head h // (H // K). Keys
  lie as a product with a query wants them, [K, R, Dh] for each sequence. The
  prefix of a group is read once for its G sequences, and never copied.

  Args:
    query: [B, H, Dh] any float dtype.
    shared_keys: [N, K, P, Dh] of the same dtype; N divides B.
    shared_values: [N, K, P, Dh].
    shared_valid: [N, P] bool, false on padding.
    keys: [B, K, R, Dh] buffers of the sequences' own tokens.
    values: [B, K, R, Dh].
    length: [] int, at least 1: slots from it on are not seen, but must be
      finite.

  Returns:
    [B, H, Dh] in the dtype of the query; logits, softmax and sums are of
    float32 or better.

  Raises:
    AssertionError: shapes or dtypes don't fit.
  """
  _check(query, shared_keys, shared_values, shared_valid, keys, values)
  batch, _, width = query.shape
  num, heads, prefix_len, _ = shared_keys.shape
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  dot = lambda equation, x, y: jnp.einsum(
      equation, x, y, preferred_element_type=dtype)
  grouped = query.reshape(batch, heads, -1, width)
  by_prefix = grouped.reshape(num, -1, *grouped.shape[1:])
  shared = dot('nikgd,nkpd->nikgp', by_prefix, shared_keys)
  shared = jnp.where(shared_valid[:, None, None, None], shared, -jnp.inf)
  own = dot('bkgd,bkrd->bkgr', grouped, keys)
  own = jnp.where(jnp.arange(keys.shape[2]) < length, own, -jnp.inf)
  logits = jnp.concatenate([shared.reshape(*own.shape[:3], prefix_len), own],
                           axis=-1)
  weights = jax.nn.softmax(logits / width**0.5, axis=-1).astype(query.dtype)
  of_prefix = weights[..., :prefix_len].reshape(shared.shape)
  mixed = dot('nikgp,nkpd->nikgd', of_prefix, shared_values)
  mixed = mixed.reshape(grouped.shape) + dot('bkgr,bkrd->bkgd',
                                             weights[..., prefix_len:], values)
  return mixed.reshape(query.shape).astype(query.dtype)


def _check(query, shared_keys, shared_values, shared_valid, keys, values):
  arrays = [query, shared_keys, shared_values, keys, values]
  chex.assert_rank(arrays + [shared_valid], [3, 4, 4, 4, 4, 2])
  chex.assert_type(arrays, query.dtype)
  chex.assert_type(shared_valid, bool)
  chex.assert_equal_shape([keys, values])
  chex.assert_equal_shape([shared_keys, shared_values])
  chex.assert_shape(shared_valid, (shared_keys.shape[0], shared_keys.shape[2]))
  batch, heads, width = query.shape
  num, key_heads = shared_keys.shape[:2]
  chex.assert_shape(keys, (batch, key_heads, None, width))
  chex.assert_shape(shared_keys, (None, None, None, width))
  chex.assert_is_divisible(batch, num)
  chex.assert_is_divisible(heads, key_heads)
