"""Where the weights of queries and keys lie in the parameters of a model."""

import collections
from collections.abc import Callable
import itertools
import math
import numbers
from typing import Any
from typing import NamedTuple

import chex
import jax

# How a path into nnx.Variable or nn.Partitioned ends.
_BOXED = jax.tree_util.GetAttrKey('value')


class Weight(NamedTuple):
  """An array in the parameters, or a part of one.

  A projection as one kernel [D, 3, H, Dh] is three of them with parts along
  axis 1; the kernel [D, (H + 2 K) Dh] of another model is parts along axis 1.
  """

  # Keys, indices or names that lead to it; of a variable of NNX or a boxed
  # parameter of Linen without the `value` inside.
  path: tuple[Any, ...]
  # Axis along which the heads lie one after the other, each with the same
  # number of entries; None where all heads share the whole.
  heads: int | None
  part: tuple[int, int, int] | None = None  # axis, start, stop of what counts
  offset: float = 0.0  # the model uses offset + w: 1 in norms with a gain 1 + w


class Attention(NamedTuple):
  """The weights that decide the attention logits of one block.

  With num_layers every array has a leading axis of that length, which no
  Weight names. Norms that stand between a projection and its rotary embedding
  have their gains, and biases, in query_gain and key_gain.
  """

  num_heads: int  # H, query heads
  num_kv_heads: int  # K, divides H; query head h reads key head h // (H / K)
  query: tuple[Weight, ...]  # kernel, and bias if there is one
  key: tuple[Weight, ...]
  # Queries of a key that is not rescaled: the rotary part of latent attention,
  # whose key has no heads.
  query_alone: tuple[Weight, ...] = ()
  query_gain: tuple[Weight, ...] = ()
  key_gain: tuple[Weight, ...] = ()
  num_layers: int | None = None  # N_l of stacked layers

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the statistics: [N_l, H], or [H] of a single layer."""
    layers = () if self.num_layers is None else (self.num_layers,)
    return *layers, self.num_heads


# Pytree with Attention as leaves, one block or a dict of them, or a function
# from params to one.
Blocks = Any | Callable[[Any], Any]


def is_block(node: Any) -> bool:
  """Whether a node of a pytree of blocks is one of its leaves."""
  return isinstance(node, Attention)


def resolve(blocks: Blocks, params: Any) -> Any:
  """The pytree of blocks, given directly or as a function from params.

  Raises:
    ValueError: it holds no block, or something else.
  """
  if callable(blocks):
    blocks = blocks(params)
  leaves = jax.tree.leaves(blocks, is_leaf=is_block)
  if not leaves or not all(map(is_block, leaves)):
    raise ValueError(f'attention must hold Attention alone, got {leaves}')
  return blocks


def by_path(tree: Any) -> dict[tuple, Any]:
  """The leaves of a pytree under the keys, indices and names to them.

  The attribute `value` of a box that holds nothing else is not part of a path:
  nnx.Optimizer hands its transformation boxed parameters in init and bare ones
  in update, and Linen boxes what has a sharding.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  in_node = collections.Counter(
    path[:end] for path, _ in leaves for end in range(len(path))
  )
  is_boxed = lambda path: (
    path and path[-1] == _BOXED and in_node[path[:-1]] == 1
  )
  return {
    tuple(map(_name, path[:-1] if is_boxed(path) else path)): leaf
    for path, leaf in leaves
  }


def _name(entry):
  fields = (field for field in ('key', 'idx', 'name') if hasattr(entry, field))
  return getattr(entry, next(fields))


def chosen(block: Attention, mode: str) -> tuple[tuple, tuple, tuple]:
  """Weights to rescale: by the query's factor, the key's, and by both.

  Raises:
    ValueError: the block can't be rescaled in this mode.
  """
  has_norm = bool(block.query_gain or block.key_gain)
  if mode == 'weights':
    if has_norm:
      raise ValueError(
        "qk_clip in mode 'weights' on attention with a norm on queries or "
        'keys, which undoes any rescaling of their weights, so that they '
        "would shrink without end: choose 'gain' or 'off'"
      )
    return block.query, block.key, block.query_alone
  if not block.query_gain or not block.key_gain:
    raise ValueError(
      "qk_clip in mode 'gain' needs a norm with gains on queries and on "
      "keys, which this attention lacks: choose 'weights' or 'off'"
    )
  return block.query_gain, block.key_gain, ()


def check(block: Attention, mode: str, leaves: dict[tuple, Any]) -> None:
  """Raises ValueError where a block doesn't fit the parameters.

  Args:
    block: description.
    mode: 'weights' or 'gain'.
    leaves: of the parameters, from `by_path`.
  """
  heads, kv_heads = block.num_heads, block.num_kv_heads
  if not _are_ints(heads, kv_heads):
    raise ValueError(
      f'num_heads={heads!r}, num_kv_heads={kv_heads!r}: must be integers'
    )
  if heads < 1 or kv_heads < 1 or heads % kv_heads:
    raise ValueError(f'{kv_heads} key heads must divide {heads} query heads')
  query, key, alone = chosen(block, mode)
  for side, weights, count in (
    ('query', query, heads),
    ('key', key, kv_heads),
    ('query_alone', alone, heads),
  ):
    if side != 'query_alone' and not weights:
      raise ValueError(f'{side}: no weight is named')
    for weight in weights:
      problem = _malformed(weight)
      if problem:
        raise ValueError(f'{side}: {weight} {problem}; got {weights}')
    if len({weight.heads is None for weight in weights}) > 1:
      raise ValueError(
        f'{side}: either all weights are shared by the heads or '
        f'none, got {weights}'
      )
    if side == 'query_alone' and any(w.heads is None for w in weights):
      raise ValueError(
        f"{side}: one factor a head can't rescale what all "
        f'heads share, got {weights}'
      )
    for weight in weights:
      if weight.path not in leaves:
        raise ValueError(
          f'{side}: no array at {weight.path} in the '
          f'parameters, which hold {sorted(leaves, key=str)}'
        )
      shape = leaves[weight.path].shape
      problem = _problem(weight, shape, count, block.num_layers)
      if problem:
        raise ValueError(f'{side}: {weight} of shape {shape} {problem}')


def check_distinct(blocks: Any, mode: str, leaves: dict[tuple, Any]) -> None:
  """Raises ValueError where two of the weights to rescale share entries.

  Args:
    blocks: pytree of blocks, each of which passed `check`.
    mode: 'weights' or 'gain'.
    leaves: of the parameters, from `by_path`.
  """
  named: dict[tuple, list[Weight]] = {}
  for block in jax.tree.leaves(blocks, is_leaf=is_block):
    for weight in itertools.chain(*chosen(block, mode)):
      others = named.setdefault(weight.path, [])
      for other in others:
        if _overlap(weight.part, other.part, leaves[weight.path].ndim):
          raise ValueError(
            f'{weight} and {other} share entries, which would '
            'be rescaled twice: name each once'
          )
      others.append(weight)


def _malformed(weight):
  """What is wrong with a description by itself, None if nothing."""
  if not isinstance(weight, Weight):
    return 'must be a Weight in a tuple of them'
  if not isinstance(weight.path, tuple):
    return 'must have a tuple as its path'
  if weight.heads is not None and not _are_ints(weight.heads):
    return 'must have an axis as its heads, or None'
  if weight.part is not None and not (
    len(weight.part) == 3 and _are_ints(*weight.part)
  ):
    return 'must have axis, start and stop as its part, or None'
  is_number = isinstance(weight.offset, (int, float))
  if not is_number or not math.isfinite(weight.offset):
    return 'must have a finite number as its offset'
  return None


def _are_ints(*values):
  return all(isinstance(value, numbers.Integral) for value in values)


def _overlap(part, other, rank):
  """Whether two parts of an array of this rank have entries in common."""
  if not part or not other or (part[0] - other[0]) % rank:
    return True
  return part[1] < other[2] and other[1] < part[2]


def _problem(weight, shape, count, num_layers):
  """What an array of this shape lacks, None if nothing."""
  rank = len(shape)
  is_stacked = num_layers is not None
  if is_stacked and shape[:1] != (num_layers,):
    return f'must start with its {num_layers} layers'
  for axis in (weight.heads, weight.part and weight.part[0]):
    if axis is not None and (
      not -rank <= axis < rank or axis % rank < is_stacked
    ):
      return f'has no axis {axis} of its own'
  if weight.part:
    axis, start, stop = weight.part
    if not 0 <= start < stop <= shape[axis]:
      return f'has no entries {start} to {stop} on axis {axis}'
  if weight.heads is not None:
    if part_shape(weight, shape)[weight.heads] % count:
      return f'must hold {count} equal heads on axis {weight.heads}'
  return None


def part_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the part that counts."""
  sizes = list(shape)
  if weight.part:
    axis, start, stop = weight.part
    sizes[axis] = stop - start
  return tuple(sizes)


def index(weight: Weight, rank: int) -> tuple[slice, ...]:
  """Index of the part that counts in an array of this rank."""
  slices = [slice(None)] * rank
  if weight.part:
    axis, start, stop = weight.part
    slices[axis] = slice(start, stop)
  return tuple(slices)


def spread(
  weight: Weight, factor: jax.Array, shape: tuple[int, ...], is_stacked: bool
) -> jax.Array:
  """The factor of each head in the shape of the part, but for axes of 1.

  Args:
    weight: description.
    factor: [N_l, heads] or [heads]; of a weight that is shared all are equal.
    shape: of the array.
    is_stacked: whether factor and array have a leading axis of layers.
  """
  chex.assert_rank(factor, 2 if is_stacked else 1)
  sizes = [1] * len(shape)
  if is_stacked:
    sizes[0] = shape[0]
  if weight.heads is None:
    return factor[..., 0].reshape(sizes)
  size = part_shape(weight, shape)[weight.heads]
  sizes[weight.heads] = size
  repeated = factor.repeat(size // factor.shape[-1], axis=-1)
  return repeated.reshape(sizes)
