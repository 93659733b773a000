"""Log-probabilities and entropies from hidden states, without all logits.

Logits [..., V] of a language model are its largest array. Here the vocabulary
is gone through in chunks, twice: once for the values and once for the
derivatives, which computes each chunk's logits again. The first pass keeps a
running maximum and rescales its sums when that grows, as in "Online normalizer
calculation for softmax" by Milakov and Gimelshein
(https://arxiv.org/abs/1805.02867).
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision

_CHUNK_ELEMENTS = 2**21  # logits of a chunk by default: 8 MB
_MIN_CHUNK = 1024


def token_logprobs_and_entropy(
  hidden: jax.Array,
  head: jax.Array,
  tokens: jax.Array,
  temperature: jax.Array | float,
  *,
  vocab_axis: int = 1,
  chunk_size: int | None = None,
  softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each token and the entropy of the choice.

  Both are of pi = softmax(u), u = softcap(hidden @ head) / temperature, with
  softcap(z) = c tanh(z / c), and equal `logprobs.token_logprobs` and
  `logprobs.entropy` on these logits but for rounding.

  With l_v = log pi_v, H the entropy, y the token and cotangents a of l_y and
  b of H, a row has

    d l_y / d u_v = [v = y] - pi_v
    d H / d u_v = -pi_v (l_v + H)
    g_v = (a [v = y] - pi_v (a + b (l_v + H))) (1 - (u_v temperature / c)^2)
          / temperature

  of which g_v is the derivative in the logit before the cap; the second factor
  is 1 without a cap. Then d hidden = g @ head^T, and d head = hidden^T @ g over
  all rows. The middle line holds as sum_v pi_v = 1 makes sum_v d pi_v = 0 and
  with it d H = -sum_v (d pi_v) l_v, where d pi_v = pi_v (d u_v - sum_w pi_w
  d u_w).

  This rule is for reverse mode, once: forward mode is an error, and a
  derivative of the derivative may be as large as all logits. The temperature
  gets the derivative 0, whatever the true one is.

  Beside inputs and outputs one call holds about 4 bytes (12 in bfloat16) for
  each row and each token of a chunk, and 8 for each element of hidden. Products
  are of the wider type of hidden and head (the derivative g is rounded to it),
  with sums in float32 or better.

  Args:
    hidden: [..., D] float; [0, D] and zeros are fine.
    head: [D, V] float; [V, D] with vocab_axis=0. Logits of -inf, from entries
      of -inf in it, are tokens that can't be chosen.
    tokens: [...] int, the tokens that were chosen.
    temperature: [] positive.
    vocab_axis: which axis of head is the vocabulary: 0 for embeddings that are
      tied. The loop over chunks needs head as it lies in memory: of an
      `embed.T` XLA would make a copy at every call.
    chunk_size: tokens of a chunk, at most V; the last may be smaller. By
      default 2 million logits for all rows, but not below 1024 tokens.
    softcap: c, positive; by default no cap.

  Returns:
    [...] log-probabilities and [...] entropies from 0 to log V, in nats and
    float32 (float64 of float64). A token outside [0, V) has the log-probability
    NaN.

  Raises:
    ValueError: vocab_axis, chunk_size or softcap is none of these.
    AssertionError: shapes or dtypes don't fit.
  """
  _check(hidden, head, tokens, temperature, vocab_axis, chunk_size, softcap)
  hidden, head = jnp.asarray(hidden), jnp.asarray(head)
  dtype = jnp.promote_types(hidden.dtype, head.dtype)
  rows = hidden.reshape(tokens.size, hidden.shape[-1]).astype(dtype)
  tokens = jnp.asarray(tokens, jnp.int32)
  vocab_size = head.shape[vocab_axis]
  if chunk_size is None:
    chunk_size = max(_MIN_CHUNK, _CHUNK_ELEMENTS // max(1, len(rows)))
  options = _Options(vocab_axis, min(chunk_size, vocab_size), softcap)
  accurate = jnp.promote_types(dtype, jnp.float32)
  values = _of_rows(
    options,
    rows,
    head,
    tokens.reshape(-1).astype(jnp.int32),
    jnp.asarray(temperature, accurate),
  )
  logprobs, entropies = (x.reshape(tokens.shape) for x in values)
  is_token = (tokens >= 0) & (tokens < vocab_size)
  return jnp.where(is_token, logprobs, jnp.nan), entropies


class _Options(NamedTuple):
  """What is known before the arrays are."""

  vocab_axis: int
  chunk_size: int
  softcap: float | None


def _check(hidden, head, tokens, temperature, vocab_axis, chunk_size, softcap):
  checks.dtypes(float, hidden=hidden, head=head)
  checks.dtypes(int, tokens=tokens)
  checks.ranks(2, head=head)
  checks.ranks(0, temperature=temperature)
  checks.shapes(hidden.shape[:-1], tokens=tokens)
  if vocab_axis not in (0, 1):
    raise ValueError(f'{vocab_axis=}: head [D, V] has 1, head [V, D] has 0')
  width = hidden.shape[-1]
  checks.shapes((None, width) if vocab_axis == 0 else (width, None), head=head)
  if chunk_size is not None and chunk_size < 1:
    raise ValueError(f'{chunk_size=}: must be at least 1')
  if softcap is not None and not softcap > 0:
    raise ValueError(f'{softcap=}: must be positive, or None for no cap')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_rows(options, hidden, head, tokens, temperature):
  """Log-probabilities [R] and entropies [R] of hidden [R, D], tokens [R]."""
  return _forward(options, hidden, head, tokens, temperature)[0]


def _forward(options, hidden, head, tokens, temperature):
  """The values, and what the derivative needs of them."""
  zeros = jnp.zeros(tokens.shape, temperature.dtype)
  lowest = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min)

  def fold(start, size, state):
    peak, total, moment, chosen = state
    part = _part(options, head, start, size, hidden.dtype)
    scores = _scores(options, hidden, part, temperature)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
    shifted = scores - new_peak[:, None]
    weights = jnp.exp(shifted)
    # 0 log 0 = 0.
    shifted = jnp.where(jnp.isneginf(shifted), 0, shifted)
    change = peak - new_peak
    decay = jnp.exp(change)
    moment = decay * (moment + change * total) + jnp.sum(weights * shifted, 1)
    total = decay * total + jnp.sum(weights, 1)
    place = tokens - start
    found = jnp.take_along_axis(
      scores, jnp.clip(place, 0, size - 1)[:, None], axis=1
    )[:, 0]
    chosen = jnp.where((place >= 0) & (place < size), found, chosen)
    return new_peak, total, moment, chosen

  # Sums over v of exp(u_v - peak), and of that times u_v - peak.
  peak, total, moment, chosen = _over_chunks(
    options, fold, head, (lowest, zeros, zeros, zeros)
  )
  log_total = jnp.log(total)
  entropies = log_total - moment / total
  residuals = hidden, head, tokens, temperature, peak, log_total, entropies
  return (chosen - peak - log_total, entropies), residuals


def _backward(options, residuals, cotangents):
  """The derivatives in hidden and head."""
  hidden, head, tokens, temperature, peak, log_total, entropies = residuals
  of_logprob, of_entropy = (x[:, None] for x in cotangents)

  def fold(start, size, derivatives):
    of_hidden, of_head = derivatives
    part = _part(options, head, start, size, hidden.dtype)
    scores = _scores(options, hidden, part, temperature)
    log_pi = scores - peak[:, None] - log_total[:, None]
    pi = jnp.exp(log_pi)
    log_pi = jnp.where(jnp.isneginf(log_pi), 0, log_pi)
    slope = -pi * (of_logprob + of_entropy * (log_pi + entropies[:, None]))
    is_chosen = jnp.arange(size) == (tokens - start)[:, None]
    slope = (slope + jnp.where(is_chosen, of_logprob, 0)) / temperature
    if options.softcap is not None:
      slope *= 1 - (scores * (temperature / options.softcap)) ** 2
    slope = slope.astype(hidden.dtype)
    # Their slope is 0, and so is what they add.
    part = jnp.where(jnp.isneginf(part), 0, part)
    of_hidden += precision.dot(slope, part, 1, options.vocab_axis)
    of_part = precision.dot(transposed, slope, 1, 0).astype(head.dtype)
    if options.vocab_axis == 0:
      # Else XLA makes of it a product of which the CPU transposes the scores.
      of_part = jax.lax.optimization_barrier(of_part).T
    of_head = jax.lax.dynamic_update_slice_in_dim(
      of_head, of_part, start, options.vocab_axis
    )
    return of_hidden, of_head

  transposed = hidden.T
  zeros = jnp.zeros(hidden.shape, temperature.dtype), jnp.zeros_like(head)
  of_hidden, of_head = _over_chunks(options, fold, head, zeros)
  return of_hidden.astype(hidden.dtype), of_head, None, None


_of_rows.defvjp(_forward, _backward)


def _over_chunks(options: _Options, fold: Callable, head, state):
  """fold(start, size, state) on each chunk; a smaller last one by itself."""
  size = options.chunk_size
  count, rest = divmod(head.shape[options.vocab_axis], size)
  state = jax.lax.fori_loop(
    0, count, lambda i, x: fold(i * size, size, x), state
  )
  return fold(count * size, rest, state) if rest else state


def _part(options, head, start, size, dtype):
  part = jax.lax.dynamic_slice_in_dim(head, start, size, options.vocab_axis)
  return part.astype(dtype)


def _scores(options, hidden, part, temperature):
  """u [R, size] of a chunk."""
  logits = precision.dot(hidden, part, 1, 1 - options.vocab_axis)
  if options.softcap is not None:
    logits = options.softcap * jnp.tanh(logits / options.softcap)
  return logits / temperature
