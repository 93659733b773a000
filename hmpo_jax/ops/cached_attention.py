"""Attention of one new token of each sequence to the tokens before it."""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision
from hmpo_jax.ops import narrow


def cached_attention(
  query: jax.Array,
  shared_keys: jax.Array,
  shared_values: jax.Array,
  shared_valid: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  length: jax.Array | int,
  *,
  logits_dtype: str = 'float32',
) -> jax.Array:
  """Softmax attention to a prefix that G sequences share, and to their own.

  Sequence b has prefix b // G, query head h reads key head h // (H // K). Keys
  lie as a product with a query wants them, [K, R, Dh] for each sequence. The
  prefix of a group is read once for its G sequences, and never copied. The
  values of a sequence with a prefix S and own tokens R are

    m = max_{s in S and R} z_s,  z_s = q . k_s / sqrt(Dh)
    (sum_S exp(z_s - m) v_s + sum_R exp(z_s - m) v_s)
      / (sum_S exp(z_s - m) + sum_R exp(z_s - m)).

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
    logits_dtype: see `attention.causal_attention`.

  Returns:
    [B, H, Dh] in the dtype of the query; logits, softmax and sums are of
    float32 or better. NaN for a head that has one in what it sees, or a narrow
    logit of +inf; 0 where all of its narrow logits are -inf.

  Raises:
    ValueError: unknown logits_dtype.
    AssertionError: shapes or dtypes don't fit.
  """
  query, shared_keys, shared_values, keys, values = map(
    jnp.asarray, (query, shared_keys, shared_values, keys, values)
  )
  _check(
    query,
    shared_keys,
    shared_values,
    shared_valid,
    keys,
    values,
    jnp.asarray(length),
  )
  narrow.check(logits_dtype)
  batch, query_heads, width = query.shape
  if batch == 0:
    return query
  num, heads = shared_keys.shape[:2]
  # All sizes without -1, which an empty batch would leave open.
  group, shares = batch // num, query_heads // heads

  def by_prefix(x):
    x = x.reshape(num, group, heads, shares, x.shape[-1]).swapaxes(1, 2)
    return x.reshape(num, heads, group * shares, x.shape[-1])

  def by_sequence(x):
    x = x.reshape(num, heads, group, shares, x.shape[-1]).swapaxes(1, 2)
    return x.reshape(batch, heads, shares, x.shape[-1])

  query = query.reshape(batch, heads, shares, width)
  shared, own = (
    narrow.rounded(logits, logits_dtype)
    for logits in (
      _logits(by_prefix(query), shared_keys, shared_valid[:, None, None]),
      _logits(query, keys, jnp.arange(keys.shape[2]) < length),
    )
  )
  top = jnp.maximum(by_sequence(_top(shared)), _top(own))
  if logits_dtype != 'float32':
    # Where all of them are -inf: exp(-inf + inf) would be NaN.
    top = jnp.maximum(top, jnp.finfo(top.dtype).min)
  # Two sums over one maximum: logits need not be brought into one order.
  of_shared = _sums(shared, by_prefix(top), shared_values)
  of_own = _sums(own, top, values)
  mixed, total = (by_sequence(x) + y for x, y in zip(of_shared, of_own))
  if logits_dtype != 'float32':
    total = jnp.where(total == 0, 1, total)
  return (mixed / total).reshape(batch, query_heads, width).astype(query.dtype)


def _logits(query, keys, valid):
  """[..., Q, S] from [..., Q, Dh] and [..., S, Dh]; -inf is not seen."""
  logits = (
    precision.einsum('nkqd,nksd->nkqs', query, keys) / query.shape[-1] ** 0.5
  )
  return jnp.where(valid, logits, -jnp.inf)


def _top(logits):
  """[..., Q, 1] largest logits, -inf of none; any number has one softmax."""
  top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
  return jax.lax.stop_gradient(top)


def _sums(logits, top, values):
  """Sums of values [..., Q, Dh] by exp(logits - top), and of these weights."""
  weights = jnp.exp(logits - top)
  mixed = precision.einsum(
    'nkqs,nksd->nkqd', weights.astype(values.dtype), values
  )
  return mixed, jnp.sum(weights, axis=-1, keepdims=True)


def _check(
  query, shared_keys, shared_values, shared_valid, keys, values, length
):
  of_prefix = {'shared_keys': shared_keys, 'shared_values': shared_values}
  of_own = {'keys': keys, 'values': values}
  checks.ranks(3, query=query)
  checks.ranks(4, **of_prefix, **of_own)
  checks.ranks(0, length=length)
  checks.dtypes(float, query=query)
  checks.dtypes(bool, shared_valid=shared_valid)
  checks.dtypes(int, length=length)
  checks.dtypes(query.dtype, **of_prefix, **of_own)
  checks.same_shape(**of_own)
  checks.same_shape(**of_prefix)
  batch, heads, width = query.shape
  num, key_heads = shared_keys.shape[:2]
  checks.shapes((num, shared_keys.shape[2]), shared_valid=shared_valid)
  checks.shapes((batch, key_heads, None, width), keys=keys)
  checks.shapes((None, None, None, width), shared_keys=shared_keys)
  checks.divides(num, batch, 'prefixes and sequences')
  checks.divides(key_heads, heads, 'key and query heads')
