"""Which tokens truncated sampling leaves, and how much mass they hold."""

import jax
import jax.numpy as jnp


def kept(logits: jax.Array, top_k: int,
         top_p: float) -> tuple[jax.Array, jax.Array]:
  """The tokens that top-k and nucleus sampling draw from.

  First the k likeliest; of these, with their mass scaled to 1, the fewest
  likeliest whose mass is at least top_p. Ties go to the lower token. See "The
  Curious Case of Neural Text Degeneration" by Holtzman et al.
  (https://arxiv.org/abs/1904.09751).

  Args:
    logits: [..., V] float, already divided by the temperature.
    top_k: 0 for all tokens; 1 leaves the likeliest alone.
    top_p: in (0, 1]; 1 for all.

  Returns:
    keep: [..., V] bool, at least one is true; all of them with (0, 1).
    mass: [...] float32 probability of the kept tokens under the whole softmax.
  """
  if top_k == 0 and top_p == 1:
    return jnp.ones(logits.shape, bool), jnp.ones(logits.shape[:-1])
  logits = logits.astype(jnp.float32)
  order = jnp.argsort(-logits, axis=-1, stable=True)
  ranked = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
  rank = jnp.arange(logits.shape[-1])
  keep = rank < (top_k or logits.shape[-1])
  if top_p < 1:
    among = jnp.where(keep, ranked, 0)
    before = jnp.cumsum(among, axis=-1) - among
    keep &= before < top_p * jnp.sum(among, axis=-1, keepdims=True)
    # The likeliest is kept whatever rounding makes of the bound.
    keep |= rank == 0
  keep = jnp.broadcast_to(keep, ranked.shape)
  mass = jnp.sum(jnp.where(keep, ranked, 0), axis=-1)
  places = jnp.argsort(order, axis=-1)
  return jnp.take_along_axis(keep, places, axis=-1), mass
