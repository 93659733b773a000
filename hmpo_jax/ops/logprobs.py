"""Log-probabilities of tokens, their entropy, and the KL between policies."""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision


def token_logprobs(
  logits: jax.Array, tokens: jax.Array, temperature: jax.Array | float
) -> jax.Array:
  """Log-probability of each token under softmax(logits / temperature).

  Args:
    logits: [..., V] any float dtype; computed in float32 or better.
    tokens: [...] int in [0, V), the tokens that were chosen; of others the
      result means nothing: mask them.
    temperature: [] positive; the same that the sampler divides by.

  Returns:
    [...] log-probabilities on the full support, in nats.
  """
  checks.shapes(logits.shape[:-1], tokens=tokens)
  log_softmax = jax.nn.log_softmax(_scaled(logits, temperature))
  return jnp.take_along_axis(log_softmax, tokens[..., None], axis=-1)[..., 0]


def entropy(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """Entropy -sum_v pi_v log pi_v of softmax(logits / temperature), in nats.

  Args:
    logits: [..., V] any float dtype; -inf is a token that can't be chosen.
    temperature: [] positive.

  Returns:
    [...] entropy, from 0 to log V.
  """
  log_softmax = jax.nn.log_softmax(_scaled(logits, temperature))
  # 0 log 0 = 0, and by `where` on the factor its derivative is not NaN.
  finite = jnp.where(jnp.isneginf(log_softmax), 0, log_softmax)
  return -jnp.sum(jnp.exp(log_softmax) * finite, -1)


def _scaled(logits, temperature):
  dtype = precision.dtype_of(logits)
  return logits.astype(dtype) / jnp.asarray(temperature, dtype)
