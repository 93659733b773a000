"""Muon for the hidden matrices and AdamW for all else."""

from collections.abc import Callable
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.optim import arguments
from hmpo_jax.optim import orthogonal

# Pytree of optax.contrib.MuonDimensionNumbers or None, or params to one.
DimensionNumbers = Any | Callable[[base.Params], Any]
# From updates, some of them masked, to a tree of numbers like them.
Factors = Callable[[base.Params], Any]


def muon(
  learning_rate: chex.Numeric,
  *,
  dimension_numbers: DimensionNumbers,
  momentum: chex.Numeric = 0.95,
  nesterov: bool = False,
  coefficients: str = 'keller',
  dtype: str = 'float32',
  weight_decay: chex.Numeric = 0.0,
  adam_learning_rate: chex.Numeric,
  adam_weight_decay: chex.Numeric = 0.0,
  adam_b1: float = 0.9,
  adam_b2: float = 0.95,
  factors: Factors | None = None,
) -> optax.GradientTransformation:
  """Muon on the matrices that have dimension numbers, AdamW on all else.

    M <- mu M + G,  and with nesterov  N = mu M + G,  else  N = M
    W <- W - eta (0.2 sqrt(max(n, m)) NewtonSchulz(N) + lambda W)

  for a matrix of n inputs and m outputs, so that an update has a root mean
  square of about 0.2 eta, as one of AdamW. See "Muon is Scalable for LLM
  Training" by Liu et al. (https://arxiv.org/abs/2502.16982) for the factor and
  `orthogonal.orthogonalize` for the iteration.

  It differs from `optax.contrib.muon` in time: matrices of one shape are
  orthogonalised in one batch, in bfloat16 if asked, which `experiments/bench
  --suite=optimizer` measures. Nesterov's step is the one of Jordan, not of
  NAdam; nothing is added to the norm, so that the smallest gradients count too;
  and adam_b2 is another.

  Args:
    learning_rate: [] eta, of the matrices that have dimension numbers.
    dimension_numbers: pytree of optax.contrib.MuonDimensionNumbers like the
      parameters, None where AdamW takes over, or a function from params to
      one. Axes that aren't named are batch axes: those of stacked layers, or
      the heads of attention to orthogonalise each on its own.
    momentum: [] mu in [0, 1).
    nesterov: the second form of N; else the heavy ball, as "Kimi K2" has it.
    coefficients: of Newton-Schulz, see `orthogonal.COEFFICIENTS`.
    dtype: of its products, see `orthogonal.DTYPES`.
    weight_decay: [] lambda.
    adam_learning_rate: [] of all other parameters.
    adam_weight_decay: [] of all other parameters, decoupled.
    adam_b1: decay of Adam's first moment.
    adam_b2: decay of Adam's second moment.
    factors: of the learning rate of each matrix, see `scale_by_rates`.

  Returns:
    A transformation. Every number but adam_b1 and adam_b2 may be traced. The
    momentum is float32.

  Raises:
    ValueError: momentum outside [0, 1), unknown coefficients or dtype; from
      update, dimension numbers that don't fit.
  """
  arguments.check_number(
    'momentum', momentum, lambda x: 0 <= x < 1, 'at least 0 and below 1'
  )
  orthogonal.check(coefficients, dtype)
  hidden = optax.chain(
    optax.trace(momentum, nesterov, accumulator_dtype=jnp.float32),
    _scale_by_orthogonal(dimension_numbers, coefficients, dtype),
    optax.add_decayed_weights(weight_decay),
    scale_by_rates(learning_rate, factors),
  )
  rest = optax.adamw(
    adam_learning_rate, b1=adam_b1, b2=adam_b2, weight_decay=adam_weight_decay
  )

  def labels(params):
    of_leaf = lambda spec: 'rest' if spec is None else 'hidden'
    return jax.tree.map(
      of_leaf, specs_of(dimension_numbers, params), is_leaf=is_spec
    )

  return optax.partition({'hidden': hidden, 'rest': rest}, labels)


def scale_by_rates(
  learning_rate: chex.Numeric, factors: Factors | None
) -> optax.GradientTransformation:
  """Updates times -eta, or times -(eta c) with a factor c of its own for each.

  The factor meets the rate before the rate meets an array: where it is 1 no bit
  changes, whatever the compiler fuses.

  Args:
    learning_rate: [] eta.
    factors: gives c; None is 1 for all.
  """
  if factors is None:
    return optax.scale_by_learning_rate(learning_rate)

  def update(updates, state, params=None):
    del params
    return jax.tree.map(
      lambda u, factor: -(learning_rate * factor) * u, updates, factors(updates)
    ), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def specs_of(dimension_numbers: DimensionNumbers, params: base.Params):
  """The pytree of dimension numbers, given directly or as a function."""
  if callable(dimension_numbers):
    return dimension_numbers(params)
  return dimension_numbers


def is_spec(node: Any) -> bool:
  """Whether a node of the pytree of dimension numbers is one of its leaves."""
  return node is None or isinstance(node, optax.contrib.MuonDimensionNumbers)


def _scale_by_orthogonal(dimension_numbers, coefficients, dtype):
  """0.2 sqrt(max(n, m)) NewtonSchulz(update), all leaves together."""

  def update(updates, state, params=None):
    del params
    specs = jax.tree.leaves(
      specs_of(dimension_numbers, updates), is_leaf=is_spec
    )
    # Leaves that AdamW takes are masked in `updates`.
    specs = [spec for spec in specs if spec is not None]
    leaves, treedef = jax.tree.flatten(updates)
    layouts = [
      _Layout(leaf.shape, spec)
      for leaf, spec in zip(leaves, specs, strict=True)
    ]
    matrices = [layout.fold(x) for layout, x in zip(layouts, leaves)]
    directions = orthogonal.orthogonalize(
      matrices, coefficients=coefficients, dtype=dtype
    )
    scaled = [
      layout.unfold(0.2 * math.sqrt(max(x.shape[-2:])) * x)
      for layout, x in zip(layouts, directions)
    ]
    return jax.tree.unflatten(treedef, scaled), state

  return optax.GradientTransformation(optax.init_empty_state, update)


class _Layout:
  """Between an array and its matrices [batch, n, m]."""

  def __init__(self, shape, spec):
    rank = len(shape)
    given = [axis for axes in spec for axis in jax.tree.leaves(axes)]
    if not all(-rank <= axis < rank for axis in given):
      raise ValueError(f'{spec}: {shape} has no such axis')
    inputs, outputs = (
      tuple(
        axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)
      )
      for axes in spec
    )
    named = inputs + outputs
    if len(set(named)) < len(named):
      raise ValueError(f'{spec}: an axis is named twice')
    batch = tuple(axis for axis in range(rank) if axis not in named)
    self._order = batch + named
    self._ordered = tuple(shape[axis] for axis in self._order)
    sizes = (
      math.prod(shape[axis] for axis in axes)
      for axes in (batch, inputs, outputs)
    )
    self._folded = tuple(sizes)

  def fold(self, x):
    """[batch, n, m] of an array."""
    return x.transpose(self._order).reshape(self._folded)

  def unfold(self, x):
    """The array of [batch, n, m]."""
    inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
    return x.reshape(self._ordered).transpose(inverse)
