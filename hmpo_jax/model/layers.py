"""One layer of the transformer, whoever mixes its keys and values."""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from hmpo_jax.ops import block_attention
from hmpo_jax.ops import products

kernel_init = nn.initializers.normal(0.02)

# Names of what is expensive to recompute: all but norms, rotations and what lies
# inside of the feed-forward layer.
_HEADS, _MIDDLE = 'layer_heads', 'layer_middle'
EXPENSIVE = (_HEADS, _MIDDLE, block_attention.MIXED, block_attention.LOG_SUMS)

# From query [..., H, Dh], key and value [..., K, Dh] to what is mixed
# [..., H, Dh] and whatever else the caller wants of the layer.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class LayerConfig(NamedTuple):
  """The widths and switches of one layer, as in `config.model`."""

  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  norm_eps: float
  qk_bias: bool
  qk_norm: bool
  recompute_mlp: bool


class Layer(nn.Module):
  """Attention and feed-forward, each on the normalised residual stream."""

  config: LayerConfig

  @nn.compact
  def __call__(self, x, rotation, attend: Attend):
    c = self.config
    attended, found = Attention(c, name='attention')(
      RMSNorm(c.norm_eps, name='attention_norm')(x), rotation, attend
    )
    x = ad_checkpoint.checkpoint_name(x + attended, _MIDDLE)
    x = x + SwiGLU(c.mlp_dim, c.recompute_mlp, name='mlp')(
      RMSNorm(c.norm_eps, name='mlp_norm')(x)
    )
    return x, found


class Attention(nn.Module):
  """Projections around attention, which is the caller's."""

  config: LayerConfig

  @nn.compact
  def __call__(self, x, rotation, attend: Attend):
    c = self.config
    project = lambda heads, use_bias, name: Dense(
      (heads, c.head_dim), use_bias=use_bias, name=name
    )(x)
    query = project(c.num_heads, c.qk_bias, 'query')  # [..., H, Dh]
    key = project(c.num_kv_heads, c.qk_bias, 'key')  # [..., K, Dh]
    value = project(c.num_kv_heads, False, 'value')
    if c.qk_norm:
      query = RMSNorm(c.norm_eps, name='query_norm')(query)
      key = RMSNorm(c.norm_eps, name='key_norm')(key)
    heads = rotate(query, rotation), rotate(key, rotation), value
    mixed, found = attend(
      *(ad_checkpoint.checkpoint_name(x, _HEADS) for x in heads)
    )
    out = Dense(x.shape[-1:], num_inputs=2, name='out')
    return out(mixed), found


class SwiGLU(nn.Module):
  """down(silu(gate x) * up x)."""

  mlp_dim: int
  recompute: bool = False  # see products.swiglu

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    inner = (width, self.mlp_dim)
    shapes = {'gate': inner, 'up': inner, 'down': inner[::-1]}
    kernels = [Kernel(shape, name=name)() for name, shape in shapes.items()]
    y = products.swiglu(
      x.reshape(-1, width), *kernels, recompute=self.recompute
    )
    return y.reshape(x.shape)


class Dense(nn.Module):
  """Product with a kernel over the last axes, and a bias."""

  features: tuple[int, ...]
  num_inputs: int = 1  # axes of x that the product is over
  use_bias: bool = False

  @nn.compact
  def __call__(self, x):
    inputs = x.shape[-self.num_inputs :]
    size = math.prod(inputs)
    kernel = self.param('kernel', kernel_init, (*inputs, *self.features))
    y = products.matmul(x.reshape(-1, size), kernel.reshape(size, -1))
    y = y.reshape(*x.shape[: -self.num_inputs], *self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, self.features)
      y += bias.astype(y.dtype)
    return y


class Kernel(nn.Module):
  """A kernel by itself."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self):
    return self.param('kernel', kernel_init, self.shape)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(scale.dtype)
    square = jnp.mean(wide**2, -1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + self.eps) * scale).astype(x.dtype)


def rotation_of(
  positions: jax.Array, width: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [..., 1, Dh / 2] of the rotary angles of positions."""
  frequencies = theta ** (-jnp.arange(0, width, 2) / width)
  angles = positions[..., None, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary embedding in the half-split layout: x [..., heads, Dh].

  See "RoFormer" by Su et al. (https://arxiv.org/abs/2104.09864).
  """
  cos, sin = rotation
  first, second = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], -1
  )
  return turned.astype(x.dtype)
