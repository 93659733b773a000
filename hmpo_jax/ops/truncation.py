"""Which tokens truncated sampling leaves, and how much mass they hold."""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks


def kept(
  logits: jax.Array, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array]:
  """The tokens that top-k and nucleus sampling draw from.

  First the k likeliest; of these, with their mass scaled to 1, the fewest
  likeliest whose mass is at least top_p. Ties go to the lower token. See "The
  Curious Case of Neural Text Degeneration" by Holtzman et al.
  (https://arxiv.org/abs/1904.09751).

  Args:
    logits: [..., V] float, already divided by the temperature; computed in
      float32, -inf is allowed.
    top_k: 0 for all tokens; 1 leaves the likeliest alone; may exceed V.
    top_p: in (0, 1]; 1 for all.

  Returns:
    keep: [..., V] bool, at least one is true; all of them with (0, 1).
    mass: [...] float32 probability of the kept tokens under the whole softmax,
      up to rounding; NaN for a row with NaN, but exactly 1 with (0, 1).

  Raises:
    ValueError: top_k is negative, or top_p is not in (0, 1].
    AssertionError: logits are no floats.
  """
  checks.dtypes(float, logits=logits)
  if top_k < 0:
    raise ValueError(f'{top_k=}: must not be negative')
  if not 0 < top_p <= 1:
    raise ValueError(f'{top_p=}: must be in (0, 1]')
  if top_k == 0 and top_p == 1:
    mass = jnp.ones(logits.shape[:-1], jnp.float32)
    return jnp.ones(logits.shape, bool), mass
  logits = logits.astype(jnp.float32)
  order = jnp.argsort(-logits, axis=-1, stable=True)
  ranked = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
  rank = jnp.arange(logits.shape[-1])
  count = jnp.asarray(top_k or logits.shape[-1])
  if top_p < 1:
    among = jnp.where(rank < count, ranked, 0)
    before = jnp.cumsum(among, axis=-1) - among
    needed = before < top_p * jnp.sum(among, axis=-1, keepdims=True)
    # Their number: by rounding, one that isn't needed may precede one that is.
    # The likeliest is kept whatever rounding makes of the bound.
    count = jnp.clip(jnp.sum(needed, axis=-1, keepdims=True), 1, count)
  mass = jnp.sum(jnp.where(rank < count, ranked, 0), axis=-1)
  return jnp.argsort(order, axis=-1) < count, mass
