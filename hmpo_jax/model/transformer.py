"""Decoder-only transformer in Linen, pure in its key-value cache.

RMSNorm, rotary positions, grouped-query attention and SwiGLU, as in "The Llama
3 Herd of Models" (https://arxiv.org/abs/2407.21783); layers are stacked by
`nn.scan`, so that every kernel has a leading axis N_l.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.kernels import reductions
from hmpo_jax.optim import qk_weights

_kernel_init = nn.initializers.normal(0.02)


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far, on buffers of fixed size."""
  keys: jax.Array  # [N_l, B, L, K, Dh] after the rotation
  values: jax.Array  # [N_l, B, L, K, Dh]
  valid: jax.Array  # [B, L] bool, true on slots that hold a visible token


class Output(NamedTuple):
  """What one pass over S tokens yields."""
  logits: jax.Array  # [B, S, V] float32
  max_logits: jax.Array  # [N_l, H] largest visible attention logit, no gradient
  keys: jax.Array  # [N_l, B, S, K, Dh] of these tokens, for a cache
  values: jax.Array  # [N_l, B, S, K, Dh]


class Transformer(nn.Module):
  """Logits of the next token; the fields are the keys of `config.model`."""
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

  @nn.compact
  def __call__(self,
               tokens: jax.Array,
               valid: jax.Array,
               positions: jax.Array,
               cache: Cache | None = None) -> Output:
    """Runs S tokens, after those of the cache if there is one.

    Args:
      tokens: [B, S] int32.
      valid: [B, S] bool, false on padding, which no token sees.
      positions: [B, S] int32 place of each token among the valid ones.
      cache: tokens before these; all its valid slots are visible.

    Returns:
      Logits at every position (those on padding are arbitrary but finite), the
      largest attention logit of a valid query on a key that it sees, -inf if
      there is none, and the keys and values of these tokens.
    """
    embed = self.param('embed', _kernel_init, (self.vocab_size, self.embed_dim))
    x = embed[tokens]
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    visible = causal & valid[:, None, :]
    rotation = _rotation(positions, self.head_dim, self.rope_theta)
    layers = nn.scan(
        Layer,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
        length=self.num_layers)(
            config=self._layer_config(), name='layers')
    past = None if cache is None else (cache.keys, cache.values)
    past_valid = None if cache is None else cache.valid
    x, (max_logits, keys, values) = layers(x, past, past_valid, visible, valid,
                                           rotation)
    x = RMSNorm(self.norm_eps, name='norm')(x)
    head = embed.T if self.tie_embeddings else self.param(
        'head', _kernel_init, (self.embed_dim, self.vocab_size))
    logits = jnp.einsum('bsd,dv->bsv', x, head).astype(jnp.float32)
    return Output(logits, max_logits, keys, values)

  def _layer_config(self):
    return LayerConfig(self.num_heads, self.num_kv_heads, self.head_dim,
                       self.mlp_dim, self.norm_eps, self.qk_bias, self.qk_norm)


class LayerConfig(NamedTuple):
  """The widths and switches of one layer, as in `config.model`."""
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  norm_eps: float
  qk_bias: bool
  qk_norm: bool


class Layer(nn.Module):
  """Attention and feed-forward, each on the normalised residual stream."""
  config: LayerConfig

  @nn.compact
  def __call__(self, x, past, past_valid, visible, valid, rotation):
    c = self.config
    attended, statistics = Attention(
        c, name='attention')(RMSNorm(c.norm_eps, name='attention_norm')(x),
                             past, past_valid, visible, valid, rotation)
    x = x + attended
    x = x + SwiGLU(
        c.mlp_dim, name='mlp')(
            RMSNorm(c.norm_eps, name='mlp_norm')(x))
    return x, statistics


class Attention(nn.Module):
  """Grouped-query attention; query head h reads key head h // (H // K)."""
  config: LayerConfig

  @nn.compact
  def __call__(self, x, past, past_valid, visible, valid, rotation):
    c = self.config
    project = lambda heads, use_bias, name: nn.DenseGeneral(
        (heads, c.head_dim),
        use_bias=use_bias,
        kernel_init=_kernel_init,
        name=name)(
            x)
    query = project(c.num_heads, c.qk_bias, 'query')  # [B, S, H, Dh]
    key = project(c.num_kv_heads, c.qk_bias, 'key')  # [B, S, K, Dh]
    value = project(c.num_kv_heads, False, 'value')
    if c.qk_norm:
      query = RMSNorm(c.norm_eps, name='query_norm')(query)
      key = RMSNorm(c.norm_eps, name='key_norm')(key)
    query, key = _rotate(query, rotation), _rotate(key, rotation)
    blocks = [(key, value, visible)]
    if past is not None:
      blocks.insert(0, (*past, past_valid[:, None, :]))
    mixed, max_logits = _attend(query, blocks, valid)
    out = nn.DenseGeneral(
        x.shape[-1],
        axis=(-2, -1),
        use_bias=False,
        kernel_init=_kernel_init,
        name='out')(
            mixed)
    return out, (max_logits, key, value)


class SwiGLU(nn.Module):
  """down(silu(gate x) * up x)."""
  mlp_dim: int

  @nn.compact
  def __call__(self, x):
    dense = lambda width, name: nn.Dense(
        width, use_bias=False, kernel_init=_kernel_init, name=name)
    hidden = jax.nn.silu(dense(self.mlp_dim, 'gate')(x)) * dense(
        self.mlp_dim, 'up')(
            x)
    return dense(x.shape[-1], 'down')(hidden)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis."""
  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) +
                             self.eps) * scale


def _attend(query, blocks, valid):
  """Softmax attention over several blocks of keys without joining them.

  Args:
    query: [B, S, H, Dh].
    blocks: keys [B, R, K, Dh], values [B, R, K, Dh], visible [B, 1 or S, R].
    valid: [B, S] bool, the queries whose logits count in the maximum.

  Returns:
    [B, S, H, Dh] mixed values and [H] largest visible logit of a valid query.
  """
  batch, length, heads, width = query.shape
  grouped = query.reshape(batch, length, blocks[0][0].shape[2], -1, width)
  scores = []
  for keys, _, visible in blocks:
    logits = jnp.einsum('bskgh,brkh->bkgsr', grouped, keys) / width**0.5
    scores.append(jnp.where(visible[:, None, None], logits, -jnp.inf))
  joined = jnp.concatenate(scores, axis=-1)  # [B, K, H / K, S, R]
  # A query that sees nothing is padding: any finite weights will do.
  blind = jnp.all(jnp.isneginf(joined), axis=-1, keepdims=True)
  seen = jnp.where(blind, 0, joined)
  weights = jax.nn.softmax(seen, axis=-1)
  # The rows' maxima, which the softmax needs too, so that no second pass over
  # [B, K, H / K, S, R] is made for the statistic.
  row_max = jax.lax.stop_gradient(seen).max(axis=-1)
  # One NaN makes NaN of all weights in its row, but maybe not of the maximum.
  is_nan = jnp.isnan(weights[..., 0])
  row_max = jnp.where(is_nan, jnp.nan, row_max)
  counted = jnp.where(valid[:, None, None, :], row_max, -jnp.inf)
  max_logits = reductions.nan_max(counted, axis=(0, 3)).reshape(heads)
  mixed, start = jnp.zeros_like(grouped), 0
  for keys, values, _ in blocks:
    part = weights[..., start:start + keys.shape[1]]
    mixed += jnp.einsum('bkgsr,brkh->bskgh', part, values)
    start += keys.shape[1]
  return mixed.reshape(batch, length, heads, width), max_logits


def _rotation(positions, width, theta):
  """Cosines and sines [B, S, 1, Dh / 2] of the rotary angles."""
  frequencies = theta**(-jnp.arange(0, width, 2) / width)
  angles = positions[..., None, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, rotation):
  """Rotary embedding in the half-split layout: x [B, S, heads, Dh].

  See "RoFormer" by Su et al. (https://arxiv.org/abs/2104.09864).
  """
  cos, sin = rotation
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], -1)


def positions_of(valid: jax.Array) -> jax.Array:
  """[B, S] int32 place of each token among the valid ones of its row."""
  return jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)


def apply(model: Transformer,
          params: base.Params,
          tokens: jax.Array,
          valid: jax.Array,
          positions: jax.Array,
          cache: Cache | None = None) -> Output:
  """Runs the model on its parameters; see Transformer.__call__."""
  output = model.apply({'params': params}, tokens, valid, positions, cache)
  assert isinstance(output, Output)  # No collection is mutable.
  return output


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
      qk_weights.Weight((*path, name, leaf), -2) for leaf in block[name])
  gains = lambda name: tuple(
      qk_weights.Weight((*path, name, leaf), None)
      for leaf in block.get(name, ()))
  return qk_weights.Attention(
      num_heads=num_heads,
      num_kv_heads=block['key']['kernel'].shape[2],
      query=weights('query'),
      key=weights('key'),
      query_gain=gains('query_norm'),
      key_gain=gains('key_norm'),
      num_layers=num_layers)


def muon_dimension_numbers(params: base.Params,
                           heads: str = 'joint') -> base.Params:
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
