"""Decoder-only transformer in Linen, from tokens to hidden states.

RMSNorm, rotary positions, grouped-query attention and SwiGLU, as in "The Llama
3 Herd of Models" (https://arxiv.org/abs/2407.21783); layers are stacked by
`nn.scan`, so that every kernel has a leading axis N_l. Parameters are float32;
what is computed from them is of the dtype of the model, but for norms, softmax,
attention statistic and logits.
"""

import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.kernels import precision
from hmpo_jax.model import layers as layers_lib
from hmpo_jax.ops import attention
from hmpo_jax.optim import qk_weights

# What is kept of a layer for the backward pass, by `config.model.remat`.
_REMAT_POLICIES = {
  'light': jax.checkpoint_policies.save_only_these_names(*layers_lib.EXPENSIVE),
  'dots': jax.checkpoint_policies.dots_saveable,
  'layer': jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
  """What one pass over S tokens yields."""

  hidden: jax.Array  # [B, S, D] in the model's dtype
  max_logits: jax.Array  # [N_l, H] largest visible attention logit, no gradient
  # Of these tokens, after the rotation, for a cache; None unless asked for.
  keys: jax.Array | None  # [N_l, B, S, K, Dh]
  values: jax.Array | None  # [N_l, B, S, K, Dh]
  # [N_l, H] nats, of the attention weights, mean over valid queries; no
  # gradient; None unless asked for.
  attention_entropy: jax.Array | None


class Transformer(nn.Module):
  """Hidden states of tokens; the fields are the keys of `config.model`."""

  vocab_size: int
  num_layers: int
  embed_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float
  norm_eps: float
  qk_bias: bool
  qk_norm: bool
  tie_embeddings: bool
  softcap: float = math.inf
  dtype: str = 'float32'
  remat: str = 'light'
  logits_dtype: str = 'float32'
  attention_entropy: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    valid: jax.Array,
    positions: jax.Array,
    keep: bool = False,
  ) -> Output:
    """Runs S tokens.

    Args:
      tokens: [B, S] int32.
      valid: [B, S] bool, false on padding, which no token sees.
      positions: [B, S] int32 place of each token among the valid ones.
      keep: whether to return keys and values.

    Returns:
      Hidden states at every position (those on padding are arbitrary but
      finite) and the largest attention logit of a valid query on a key that it
      sees, -inf if there is none.
    """
    embed = self.param(
      'embed', layers_lib.kernel_init, (self.vocab_size, self.embed_dim)
    )
    if not self.tie_embeddings:
      self.param(
        'head', layers_lib.kernel_init, (self.embed_dim, self.vocab_size)
      )
    rotation = layers_lib.rotation_of(positions, self.head_dim, self.rope_theta)

    def attend(query, key, value):
      heads, entropy = (query, key, value, valid), None
      if self.attention_entropy:
        mixed, max_logits, entropies = attention.causal_attention_and_entropy(
          *heads, logits_dtype=self.logits_dtype
        )
        entropy = jnp.mean(entropies, (0, 1), where=valid[..., None])
      else:
        mixed, max_logits = attention.causal_attention(
          *heads, logits_dtype=self.logits_dtype
        )
      kept = (key, value) if keep else (None, None)
      return mixed, (max_logits, *kept, entropy)

    body = lambda layer, x: layer(x, rotation, attend)
    if self.remat in _REMAT_POLICIES:
      policy = _REMAT_POLICIES[self.remat]
      body = nn.remat(body, policy=policy, prevent_cse=False)
    stack = nn.scan(
      body,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=self.num_layers,
    )
    x, found = stack(
      layers_lib.Layer(self.layer_config(), name='layers'),
      embed[tokens].astype(self.dtype),
    )
    x = layers_lib.RMSNorm(self.norm_eps, name='norm')(x)
    return Output(x, *found)

  def layer_config(self) -> layers_lib.LayerConfig:
    """What every layer is made from."""
    return layers_lib.LayerConfig(
      self.num_heads,
      self.num_kv_heads,
      self.head_dim,
      self.mlp_dim,
      self.norm_eps,
      self.qk_bias,
      self.qk_norm,
      self.remat == 'light',
    )


def positions_of(valid: jax.Array) -> jax.Array:
  """[B, S] int32 place of each token among the valid ones of its row."""
  return jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)


def apply(
  model: Transformer,
  params: base.Params,
  tokens: jax.Array,
  valid: jax.Array,
  positions: jax.Array,
  keep: bool = False,
) -> Output:
  """Runs the model on its parameters; see `Transformer.__call__`."""
  output = model.apply({'params': params}, tokens, valid, positions, keep)
  assert isinstance(output, Output)  # No collection is mutable.
  return output


def head(model: Transformer, params: base.Params) -> tuple[jax.Array, int]:
  """The output matrix in the dtype of the hidden states, and its axis V."""
  matrix = params['embed' if model.tie_embeddings else 'head']
  return matrix.astype(model.dtype), 0 if model.tie_embeddings else 1


def logits(
  model: Transformer, params: base.Params, hidden: jax.Array
) -> jax.Array:
  """[..., V] float32 logits of the next token, from hidden states [..., D]."""
  matrix, vocab_axis = head(model, params)
  product = precision.dot(hidden, matrix, hidden.ndim - 1, 1 - vocab_axis)
  if model.softcap == math.inf:
    return product
  return model.softcap * jnp.tanh(product / model.softcap)


def init(model: Transformer, key: jax.Array) -> base.Params:
  """Draws the parameters; the key is consumed."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return model.init(key, tokens, tokens == 0, tokens)['params']


def attention_weights(params: base.Params) -> qk_weights.Attention:
  """Where the QK-clip finds the weights of queries and keys."""
  path = ('layers', 'attention')
  block = params['layers']['attention']
  num_layers, _, num_heads, _ = block['query']['kernel'].shape
  # Kernels [N_l, D, heads, Dh] and biases [N_l, heads, Dh].
  weights = lambda name: tuple(
    qk_weights.Weight((*path, name, leaf), -2) for leaf in block[name]
  )
  gains = lambda name: tuple(
    qk_weights.Weight((*path, name, leaf), None) for leaf in block.get(name, ())
  )
  return qk_weights.Attention(
    num_heads=num_heads,
    num_kv_heads=block['key']['kernel'].shape[2],
    query=weights('query'),
    key=weights('key'),
    query_gain=gains('query_norm'),
    key_gain=gains('key_norm'),
    num_layers=num_layers,
  )


def muon_dimension_numbers(
  params: base.Params, heads: str = 'joint'
) -> base.Params:
  """Which axes of each hidden matrix Muon orthogonalises; None is AdamW's.

  Args:
    params: of the model.
    heads: 'joint': kernels [N_l, D, H, Dh] are one D x (H Dh) matrix for each
      layer; 'per_head': one D x Dh matrix for each head.

  Raises:
    ValueError: unknown heads.
  """
  if heads not in ('joint', 'per_head'):
    raise ValueError(f'{heads=}: must be joint or per_head')
  spec = optax.contrib.MuonDimensionNumbers
  is_joint = heads == 'joint'
  projection = spec((1,), (2, 3) if is_joint else (3,))
  specs = {
    'query': projection,
    'key': projection,
    'value': projection,
    'out': spec((1, 2) if is_joint else (2,), (3,)),
    'gate': spec((1,), (2,)),
    'up': spec((1,), (2,)),
    'down': spec((1,), (2,)),
  }

  def of_leaf(path, _):
    *_, owner, leaf = ('', *(entry.key for entry in path))
    return specs.get(owner) if leaf == 'kernel' else None

  return jax.tree_util.tree_map_with_path(of_leaf, params)
