"""Attention logits, and what the QK-clip owes each weight, in float64 loops.

Nothing here reads the description of the weights that the clip reads: each
layout says in plain indexing which entries belong to which head.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

LAYERS, WIDTH, HEADS, HEAD_WIDTH = 2, 8, 4, 4
_TOKENS = 6


class Heads(NamedTuple):
  """What decides the logits of each query head of one block."""

  query: np.ndarray  # [N_l, H, D + 1, Dh] kernel and, as its last row, bias
  key: np.ndarray  # [N_l, H, D + 1, Dh] of the key head that it reads
  rotated: int = HEAD_WIDTH  # trailing entries of Dh under rotary embedding
  alone: int = 0  # trailing entries of Dh whose key is not rescaled
  query_gain: np.ndarray | None = None  # [N_l, H, 2, Dh] gain and bias of norms
  key_gain: np.ndarray | None = None
  offset: float = 0.0  # the norm's gain is offset + w


class Layout(NamedTuple):
  """Parameters, how `qk_clip` is told of them, and what they mean."""

  params: Any  # pytree, float32
  blocks: Any  # pytree of qk_weights.Attention
  read: Callable[[Any], list[Heads]]  # a Heads for each block, of such a pytree
  mode: str = 'weights'


def logits(layout, params, eps=1e-6):
  """Float64 [N_l, H, S, S] attention logits of each block, all visible."""
  x = np.random.default_rng(7).normal(size=(_TOKENS, WIDTH))
  x = np.concatenate([x, np.ones((_TOKENS, 1))], 1)
  blocks = []
  for heads in layout.read(jax.tree.map(np.float64, params)):
    block = np.zeros((*heads.query.shape[:2], _TOKENS, _TOKENS))
    for at in np.ndindex(block.shape[:2]):
      query, key = (
        _turned(
          _normed(x @ kernel[at], gain, at, heads.offset, eps), heads.rotated
        )
        for kernel, gain in (
          (heads.query, heads.query_gain),
          (heads.key, heads.key_gain),
        )
      )
      block[at] = query @ key.T / query.shape[1] ** 0.5
    blocks.append(block)
  return blocks


def _normed(side, gain, at, offset, eps):
  """RMSNorm of [S, Dh] with the gain and bias of one head."""
  if gain is None:
    return side
  root = np.sqrt(np.mean(side**2, axis=1, keepdims=True) + eps)
  return side / root * (offset + gain[at][0]) + gain[at][1]


def _turned(side, rotated):
  """Rotary embedding of the trailing entries, in pairs of neighbours."""
  result = side.copy()
  for t, j in np.ndindex(len(side), rotated // 2):
    first = side.shape[1] - rotated + 2 * j
    pair = complex(*side[t, first : first + 2])
    turned = pair * np.exp(1j * t * 50 ** (-2 * j / rotated))
    result[t, first : first + 2] = turned.real, turned.imag
  return result


def gammas(layout, max_logits, tau):
  """Float64 [N_l, H] min(1, tau / S) of each block; 1 for NaN and infinity.

  Gains that all heads share take the smallest of their layer.
  """
  results = []
  for heads, largest in zip(layout.read(_numbered(layout.params)), max_logits):
    largest = np.reshape(np.float64(largest), heads.query.shape[:2])
    over = np.isfinite(largest) & (largest > tau)
    gamma = np.where(over, tau / np.where(over, largest, tau), 1)
    if layout.mode == 'gain':
      for of_layer, gains in zip(gamma, heads.query_gain):
        if np.array_equal(gains[0], gains[1]):
          of_layer[:] = of_layer.min()
    results.append(gamma)
  return results


def factors(layout, gamma, alpha):
  """What multiplies each entry, and the offset to which it is added before.

  Query heads that read the same entries are a group.

  Args:
    layout: any.
    gamma: [N_l, H] of each block.
    alpha: the queries' share.

  Returns:
    Two pytrees like the parameters, float64.
  """
  ids = _numbered(layout.params)
  factor = np.ones(1 + sum(np.size(leaf) for leaf in jax.tree.leaves(ids)))
  offset = np.zeros_like(factor)
  for heads, of_block in zip(layout.read(ids), gamma):
    queries, keys = heads.query, heads.key
    if layout.mode == 'gain':
      queries, keys = heads.query_gain, heads.key_gain
      for side in (queries, keys):
        offset[side[:, :, 0].astype(int)] = heads.offset
    queries, keys = queries.astype(int), keys.astype(int)
    paired = queries.shape[-1] - heads.alone
    for n, head in np.ndindex(*of_block.shape):
      query, key = queries[n, head], keys[n, head, ..., :paired]
      group = [
        i for i in range(HEADS) if np.array_equal(keys[n, i, ..., :paired], key)
      ]
      of_key = max(of_block[n, group]) ** (1 - alpha)
      factor[key] = of_key
      factor[query[..., :paired]] = of_block[n, head] / of_key
      factor[query[..., paired:]] = of_block[n, head]
  look_up = lambda table: jax.tree.map(lambda x: table[x.astype(int)], ids)
  return look_up(factor), look_up(offset)


def _numbered(params):
  """A number of its own for each entry; 0 is left for what isn't there."""
  leaves, treedef = jax.tree.flatten(params)
  ends = np.cumsum([0] + [np.size(leaf) for leaf in leaves])
  return treedef.unflatten(
    np.arange(1 + start, 1 + stop).reshape(np.shape(leaf)).astype(float)
    for leaf, start, stop in zip(leaves, ends, ends[1:])
  )
