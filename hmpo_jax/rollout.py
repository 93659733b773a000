"""Sampling of responses under `jit`, on buffers of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.kernels import logprobs as logprobs_lib
from hmpo_jax.model import transformer


class _State(NamedTuple):
  """The loop's buffers, after `step` tokens of each response."""
  step: jax.Array  # [] int32
  logits: jax.Array  # [B, V] of the next token
  done: jax.Array  # [B] bool, has drawn the stop token
  tokens: jax.Array  # [B, T] int32
  mask: jax.Array  # [B, T] bool
  logprobs: jax.Array  # [B, T] float32
  cache: transformer.Cache


def sample(model: transformer.Transformer,
           params: base.Params,
           prompts: jax.Array,
           keys: jax.Array,
           *,
           response_len: int,
           stop: int,
           pad: int,
           temperature: jax.Array | float,
           greedy: bool = False) -> base.Rollout:
  """Draws G responses to each of N prompts, until their stop token.

  The token at position t of a response is drawn with fold_in(its key, t): it
  depends on its own key and prompt alone, not on the batch around it.

  Args:
    model: the policy.
    params: its parameters.
    prompts: [N, P] int32, padded on the left with `pad`.
    keys: [N, G] typed keys, consumed; ignored when greedy.
    response_len: T, tokens after which a response is cut.
    stop: token that ends a response and belongs to it.
    pad: token outside prompt and response.
    temperature: [] divides the logits before the softmax.
    greedy: takes the likeliest token instead of drawing one.

  Returns:
    A Rollout with log-probabilities on the full support; a response without
    stop token is truncated and its mask is true to the end.
  """
  group = keys.shape[1]
  keys = keys.reshape(-1)
  prompt_valid = prompts != pad
  state = _prefill(model, params, prompts, prompt_valid, group, response_len)
  prompt_lens = jnp.repeat(jnp.sum(prompt_valid, 1, dtype=jnp.int32), group)

  def choose(logits, step):
    if greedy:
      return jnp.argmax(logits, -1).astype(jnp.int32)
    draw = lambda key, row: jax.random.categorical(
        jax.random.fold_in(key, step), row / temperature)
    return jax.vmap(draw)(keys, logits).astype(jnp.int32)

  def decode(state):
    alive = ~state.done
    chosen = jnp.where(alive, choose(state.logits, state.step), pad)
    chosen_logprobs = logprobs_lib.token_logprobs(state.logits, chosen,
                                                  temperature)
    output = transformer.apply(model, params, chosen[:, None], alive[:, None],
                               (prompt_lens + state.step)[:, None], state.cache)
    put = lambda buffer, column: jax.lax.dynamic_update_slice_in_dim(
        buffer, column[:, None], state.step, axis=1)
    return _State(
        step=state.step + 1,
        logits=output.logits[:, 0],
        done=state.done | (chosen == stop),
        tokens=put(state.tokens, chosen),
        mask=put(state.mask, alive),
        logprobs=put(state.logprobs, jnp.where(alive, chosen_logprobs, 0)),
        cache=_append(state.cache, output, alive,
                      prompts.shape[1] + state.step))

  running = lambda state: (state.step < response_len) & ~jnp.all(state.done)
  state = jax.lax.while_loop(running, decode, state)
  tokens = jnp.where(state.mask, state.tokens, pad)
  return base.Rollout(
      tokens=jnp.concatenate([jnp.repeat(prompts, group, 0), tokens], 1),
      valid=jnp.concatenate([jnp.repeat(prompt_valid, group, 0), state.mask],
                            1),
      mask=state.mask,
      logprobs=state.logprobs)


def _prefill(model, params, prompts, valid, group, response_len):
  """Runs each prompt once and shares its cache among its G responses."""
  output = transformer.apply(model, params, prompts, valid,
                             transformer.positions_of(valid))
  room = lambda x: jnp.pad(
      jnp.repeat(x, group, 1), ((0, 0), (0, 0), (0, response_len), (0, 0),
                                (0, 0)))
  cache = transformer.Cache(
      room(output.keys), room(output.values),
      jnp.pad(jnp.repeat(valid, group, 0), ((0, 0), (0, response_len))))
  batch = prompts.shape[0] * group
  return _State(
      step=jnp.int32(0),
      logits=jnp.repeat(output.logits[:, -1], group, 0),
      done=jnp.zeros(batch, bool),
      tokens=jnp.zeros((batch, response_len), jnp.int32),
      mask=jnp.zeros((batch, response_len), bool),
      logprobs=jnp.zeros((batch, response_len)),
      cache=cache)


def _append(cache, output, alive, slot):
  """Writes the keys and values of one token of each row at `slot`."""
  put = jax.lax.dynamic_update_slice_in_dim
  return transformer.Cache(
      put(cache.keys, output.keys, slot, axis=2),
      put(cache.values, output.values, slot, axis=2),
      put(cache.valid, alive[:, None], slot, axis=1))
