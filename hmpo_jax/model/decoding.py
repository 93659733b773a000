"""The transformer token by token, on buffers of keys and values.

Layers are taken apart before the loop over tokens: a loop over stacked layers
would copy each layer's weights and buffers out of the stack at every token.
"""

from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.model import layers as layers_lib
from hmpo_jax.model import transformer
from hmpo_jax.ops import cached_attention


class Weights(NamedTuple):
  """Parameters as decoding reads them, matrices in the model's dtype."""

  layers: tuple[base.Params, ...]  # one for each layer
  rest: base.Params


class Prefix(NamedTuple):
  """Keys and values of N prompts; those of one serve its G responses."""

  keys: tuple[jax.Array, ...]  # of each layer [N, K, P, Dh]
  values: tuple[jax.Array, ...]
  valid: jax.Array  # [N, P] bool


class Cache(NamedTuple):
  """Keys and values of the responses' tokens, room for R of each."""

  keys: tuple[jax.Array, ...]  # of each layer [B, K, R, Dh]
  values: tuple[jax.Array, ...]


def weights(model: transformer.Transformer, params: base.Params) -> Weights:
  """Takes stacked parameters apart, once for all tokens."""
  narrow = lambda x: jnp.asarray(x, model.dtype if x.ndim > 1 else None)
  layers = tuple(
    jax.tree.map(lambda x, i=i: narrow(x[i]), params['layers'])
    for i in range(model.num_layers)
  )
  rest = {key: value for key, value in params.items() if key != 'layers'}
  return Weights(layers, jax.tree.map(narrow, rest))


def prefill(
  model: transformer.Transformer,
  params: base.Params,
  prompts: jax.Array,
  valid: jax.Array,
) -> tuple[jax.Array, Prefix]:
  """Runs each prompt once.

  Args:
    model: the policy.
    params: its parameters.
    prompts: [N, P] int32, padded on the left.
    valid: [N, P] bool, false on padding.

  Returns:
    [N, V] float32 logits of the first token of a response, and the prefix.
  """
  output = transformer.apply(
    model, params, prompts, valid, transformer.positions_of(valid), keep=True
  )
  apart = lambda x: tuple(x.swapaxes(2, 3))
  logits = transformer.logits(model, params, output.hidden[:, -1])
  return logits, Prefix(apart(output.keys), apart(output.values), valid)


def empty(prefix: Prefix, batch: int) -> Cache:
  """A cache without room for B responses."""
  _, heads, _, width = prefix.keys[0].shape
  start = tuple(
    jnp.zeros((batch, heads, 0, width), keys.dtype) for keys in prefix.keys
  )
  return Cache(start, start)


def grown(cache: Cache, length: int) -> Cache:
  """The cache with room for `length` tokens; the new room holds zeros."""
  room = length - cache.keys[0].shape[2]
  return jax.tree.map(
    lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))), cache
  )


def step(
  model: transformer.Transformer,
  params: Weights,
  prefix: Prefix,
  cache: Cache,
  tokens: jax.Array,
  positions: jax.Array,
  slot: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Runs one token of each response.

  Args:
    model: the policy.
    params: from `weights`.
    prefix: from `prefill`.
    cache: of the tokens before; its slots below `slot` are seen.
    tokens: [B] int32; N divides B, responses to one prompt side by side.
    positions: [B] int32 place of each token in its sequence.
    slot: [] int32 where the cache takes them up.

  Returns:
    [B, V] float32 logits of the next token, and the cache with these tokens.
  """
  layer = layers_lib.Layer(model.layer_config())
  norm = layers_lib.RMSNorm(model.norm_eps)
  rotation = layers_lib.rotation_of(positions, model.head_dim, model.rope_theta)
  x = params.rest['embed'][tokens].astype(model.dtype)
  keys, values = [], []
  for i, of_layer in enumerate(params.layers):
    x, (key, value) = _run(
      layer, of_layer, x, rotation, _attend(model, prefix, cache, i, slot)
    )
    keys.append(key)
    values.append(value)
  hidden = _run(norm, params.rest['norm'], x)
  logits = transformer.logits(model, params.rest, hidden)
  return logits, Cache(tuple(keys), tuple(values))


def _run(module: nn.Module, params: base.Params, *args) -> Any:
  return module.apply({'params': params}, *args)


def _attend(model, prefix, cache, i, slot):
  """Takes up the new tokens of layer i and lets them see what is there."""
  put = lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(
    buffer, new[:, :, None], slot, axis=2
  )

  def attend(query, key, value):
    own = put(cache.keys[i], key), put(cache.values[i], value)
    mixed = cached_attention.cached_attention(
      query,
      prefix.keys[i],
      prefix.values[i],
      prefix.valid,
      *own,
      slot + 1,
      logits_dtype=model.logits_dtype,
    )
    return mixed, own

  return attend
