"""Sequences in blocks of tokens, as blockwise attention goes over them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# On CPU so many logits of several sequences are made at once: 2 MB.
_LOGITS_AT_ONCE = 2**19


def over_rows(function: Callable, size: int, query: jax.Array, *arrays):
  """Applies a function of one sequence to all, as the platform likes it.

  Args:
    function: of one sequence of each of the arrays.
    size: tokens of a block.
    query: [B, S, H, Dh].
    *arrays: [B, ...].
  """
  run = lambda rows: function(*rows)
  batch = query.shape[0]
  # What goes at once divides the batch and is as much as the cache takes.
  fitting = max(1, _LOGITS_AT_ONCE // (query.shape[2] * size**2))
  at_once = max(n for n in range(1, min(batch, fitting) + 1) if batch % n == 0)
  return jax.lax.platform_dependent(
    query,
    *arrays,
    cpu=lambda *rows: jax.lax.map(run, rows, batch_size=at_once),
    default=lambda *rows: jax.vmap(run)(rows),
  )


def split(x: jax.Array, size: int, groups: int = 1) -> jax.Array:
  """[S, K G, D] as blocks [N, K, G size, D]; zeros fill the last one."""
  length, heads, width = x.shape
  x = jnp.pad(x, ((0, -length % size), (0, 0), (0, 0)))
  x = x.reshape(-1, size, heads // groups, groups, width)
  x = x.transpose(0, 2, 3, 1, 4)
  return x.reshape(len(x), heads // groups, groups * size, width)


def join(blocks: jax.Array, length: int, groups: int = 1) -> jax.Array:
  """The inverse of `split`."""
  num, heads, rows, width = blocks.shape
  x = blocks.reshape(num, heads, groups, rows // groups, width)
  return x.transpose(0, 3, 1, 2, 4).reshape(-1, heads * groups, width)[:length]


def hidden(valid: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
  """[N, 1, 1, size] what is added to logits: 0, or -inf for a padding key."""
  added = jnp.where(valid, 0, -jnp.inf).astype(dtype)
  added = jnp.pad(added, (0, -len(valid) % size), constant_values=-jnp.inf)
  return added.reshape(-1, 1, 1, size)


def causal(size: int, groups: int) -> jax.Array:
  """[G size, size] bool: what a block of queries sees of the keys beside it."""
  return jnp.tile(jnp.tril(jnp.ones((size, size), bool)), (groups, 1))


def at(x: jax.Array, i: jax.Array | int) -> jax.Array:
  """x[i], for an index in a loop."""
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
