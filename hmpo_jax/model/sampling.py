"""Sampling of responses under `jit`, on buffers of fixed size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.model import decoding
from hmpo_jax.model import transformer
from hmpo_jax.ops import logprobs as logprobs_lib
from hmpo_jax.ops import truncation

_MIN_BUCKET = 16  # tokens by which a cache grows by default, at least


class _State(NamedTuple):
  """The loop's buffers, after `step` tokens of each response."""

  step: jax.Array  # [] int32
  logits: jax.Array  # [B, V] of the next token
  done: jax.Array  # [B] bool, has drawn the stop token
  tokens: jax.Array  # [B, T] int32
  mask: jax.Array  # [B, T] bool
  logprobs: jax.Array  # [B, T] float32
  kept_mass: jax.Array | None  # [B, T] float32
  cache: decoding.Cache


def sample(
  model: transformer.Transformer,
  params: base.Params,
  prompts: jax.Array,
  keys: jax.Array,
  *,
  response_len: int,
  stop: int,
  pad: int,
  temperature: jax.Array | float,
  greedy: bool = False,
  top_k: int = 0,
  top_p: float = 1.0,
  bucket: int = 0,
) -> base.Rollout:
  """Draws G responses to each of N prompts, until their stop token.

  The token at position t of a response is drawn with fold_in(its key, t): it
  depends on its own key and prompt alone, not on the batch around it.

  A prompt is run once for its G responses. Each new token attends to buckets
  that are filled or being filled: the loop over tokens is one program for each
  size of the cache, and ends early when all responses have ended.

  Args:
    model: the policy.
    params: its parameters.
    prompts: [N, P] int32, padded on the left with `pad`.
    keys: [N, G] typed keys, consumed; ignored when greedy.
    response_len: T, tokens after which a response is cut.
    stop: token that ends a response and belongs to it; -1: none does.
    pad: token outside prompt and response.
    temperature: [] divides the logits before the softmax.
    greedy: takes the likeliest token instead of drawing one.
    top_k: draws from the k likeliest tokens, 0 from all; see
      ops/truncation.py.
    top_p: draws from the likeliest tokens of that mass.
    bucket: tokens by which the cache grows, 0 for a quarter of the response but
      at least 16; whatever it is, the tokens are the same.

  Returns:
    A Rollout with log-probabilities on the full support; a response without
    stop token is truncated and its mask is true to the end.
  """
  group = keys.shape[1]
  keys = keys.reshape(-1)
  is_truncated = not greedy and (top_k > 0 or top_p < 1)
  prompt_valid = prompts != pad
  first_logits, prefix = decoding.prefill(model, params, prompts, prompt_valid)
  weights = decoding.weights(model, params)
  prompt_lens = jnp.repeat(jnp.sum(prompt_valid, 1, dtype=jnp.int32), group)

  def choose(logits, step):
    """Tokens [B], and the mass [B] of what they were drawn from."""
    if greedy:
      return jnp.argmax(logits, -1).astype(jnp.int32), None
    logits = logits / temperature
    mass = None
    if is_truncated:
      keep, mass = truncation.kept(logits, top_k, top_p)
      logits = jnp.where(keep, logits, -jnp.inf)
    draw = lambda key, row: jax.random.categorical(
      jax.random.fold_in(key, step), row
    )
    return jax.vmap(draw)(keys, logits).astype(jnp.int32), mass

  def decode(state):
    alive = ~state.done
    chosen, mass = choose(state.logits, state.step)
    chosen = jnp.where(alive, chosen, pad)
    chosen_logprobs = logprobs_lib.token_logprobs(
      state.logits, chosen, temperature
    )
    logits, cache = decoding.step(
      model,
      weights,
      prefix,
      state.cache,
      chosen,
      prompt_lens + state.step,
      state.step,
    )
    put = lambda buffer, column: jax.lax.dynamic_update_slice_in_dim(
      buffer, column[:, None], state.step, axis=1
    )
    return _State(
      step=state.step + 1,
      logits=logits,
      done=state.done | (chosen == stop),
      tokens=put(state.tokens, chosen),
      mask=put(state.mask, alive),
      logprobs=put(state.logprobs, jnp.where(alive, chosen_logprobs, 0)),
      kept_mass=put(state.kept_mass, mass) if is_truncated else None,
      cache=cache,
    )

  running = lambda end, state: (state.step < end) & ~_all(state.done)
  state = _start(first_logits, prefix, group, response_len, is_truncated)
  bucket = bucket or max(_MIN_BUCKET, -(-response_len // 4))
  for size in (*range(bucket, response_len, bucket), response_len):
    state = state._replace(cache=decoding.grown(state.cache, size))
    state = jax.lax.while_loop(functools.partial(running, size), decode, state)
  tokens = jnp.where(state.mask, state.tokens, pad)
  return base.Rollout(
    tokens=jnp.concatenate([jnp.repeat(prompts, group, 0), tokens], 1),
    valid=jnp.concatenate([jnp.repeat(prompt_valid, group, 0), state.mask], 1),
    mask=state.mask,
    logprobs=state.logprobs,
    kept_mass=state.kept_mass,
  )


def mismatched(
  key: jax.Array, rollout: base.Rollout, frac: jax.Array, size: jax.Array
) -> base.Rollout:
  """A rollout of a sampler that computes some log-probabilities wrong.

  Each token of a response is off with probability `frac`, by +size or -size
  with equal probability, whatever the others are. Such jumps are what a trainer
  sees that routes a token to other experts than the sampler did. What is told
  may so be above 0, which no log-probability is.

  Args:
    key: consumed.
    rollout: from `sample`.
    frac: [] share of the tokens, from 0 to 1; at 0 no bit changes.
    size: [] nats.
  """
  draws = jax.random.uniform(key, rollout.mask.shape)
  offset = jnp.where(draws < frac / 2, size, -size)
  is_off = rollout.mask & (draws < frac)
  return rollout._replace(
    logprobs=jnp.where(is_off, rollout.logprobs + offset, rollout.logprobs)
  )


def _start(logits, prefix, group, response_len, is_truncated):
  batch = logits.shape[0] * group
  zeros = jnp.zeros((batch, response_len))
  return _State(
    step=jnp.int32(0),
    logits=jnp.repeat(logits, group, 0),
    done=jnp.zeros(batch, bool),
    tokens=zeros.astype(jnp.int32),
    mask=zeros.astype(bool),
    logprobs=zeros,
    kept_mass=zeros if is_truncated else None,
    cache=decoding.empty(prefix, batch),
  )


@jax.custom_batching.custom_vmap
def _all(done):
  """Whether all responses have ended; of all runs, under `vmap`.

  A loop whose end differs between runs would be one that selects between old
  and new buffers at every token.
  """
  return jnp.all(done)


@_all.def_vmap
def _all_of_runs(axis_size, in_batched, done):
  del axis_size, in_batched
  return _all(done), False
