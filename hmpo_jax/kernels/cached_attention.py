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
    shared_keys: [N, K, P, Dh] of the same dtype; N divides B, and K divides H.
      P may be 0.
    shared_values: [N, K, P, Dh] of the same dtype.
    shared_valid: [N, P] bool, false on padding, which is not seen and may hold
      any finite numbers. All of a prefix may be padding.
    keys: [B, K, R, Dh] of the same dtype, buffers of the sequences' own tokens.
    values: [B, K, R, Dh] of the same dtype.
    length: [] int of all sequences, at least 1: slots from it on are not seen,
      but must be finite.

  Returns:
    [B, H, Dh] in the dtype of the query; logits, softmax and sums are of
    float32 or better.

  Raises:
    AssertionError: shapes or dtypes don't fit.
  """
  _check(query, shared_keys, shared_values, shared_valid, keys, values,
         jnp.asarray(length))
  batch, query_heads, width = query.shape
  num, heads, prefix_len, _ = shared_keys.shape
  # Both without -1, which an empty batch would leave open.
  by_sequence = batch, heads, query_heads // heads
  by_prefix = num, batch // num, *by_sequence[1:]
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  dot = lambda equation, x, y: jnp.einsum(
      equation, x, y, preferred_element_type=dtype)
  shared = dot('nikgd,nkpd->nikgp', query.reshape(*by_prefix, width),
               shared_keys)
  shared = jnp.where(shared_valid[:, None, None, None], shared, -jnp.inf)
  own = dot('bkgd,bkrd->bkgr', query.reshape(*by_sequence, width), keys)
  own = jnp.where(jnp.arange(keys.shape[2]) < length, own, -jnp.inf)
  shared = shared.reshape(*by_sequence, prefix_len)
  logits = jnp.concatenate([shared, own], axis=-1) / width**0.5
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  on_shared, on_own = jnp.split(weights, [prefix_len], axis=-1)
  of_shared = dot('nikgp,nkpd->nikgd',
                  on_shared.reshape(*by_prefix, prefix_len), shared_values)
  of_own = dot('bkgr,bkrd->bkgd', on_own, values)
  mixed = of_shared.reshape(query.shape) + of_own.reshape(query.shape)
  return mixed.astype(query.dtype)


def _check(query, shared_keys, shared_values, shared_valid, keys, values,
           length):
  arrays = [query, shared_keys, shared_values, keys, values]
  chex.assert_rank(arrays + [shared_valid, length], [3, 4, 4, 4, 4, 2, 0])
  chex.assert_type([query, shared_valid, length], [float, bool, int])
  chex.assert_type(arrays, query.dtype)
  chex.assert_equal_shape([keys, values])
  chex.assert_equal_shape([shared_keys, shared_values])
  chex.assert_shape(shared_valid, (shared_keys.shape[0], shared_keys.shape[2]))
  batch, heads, width = query.shape
  num, key_heads = shared_keys.shape[:2]
  chex.assert_shape(keys, (batch, key_heads, None, width))
  chex.assert_shape(shared_keys, (None, None, None, width))
  chex.assert_is_divisible(batch, num)
  chex.assert_is_divisible(heads, key_heads)
