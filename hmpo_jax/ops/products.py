"""Matrix products of many rows, with derivatives that the CPU likes too.

The values are those of `x @ kernel`. Rows are one axis, and the derivative is
asked for as two products of matrices that lie in memory: for x of [B, T, n],
XLA's CPU compiler writes the elementwise work before a kernel's derivative into
a transposed array [n, B, T], at several times the cost of the product itself.

Kernels may be of another type than x (float32 masters under bfloat16 compute):
they are rounded to that of x, sums are of float32 or better, and a kernel's
derivative is those sums, without a rounding to the type of x between.
"""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision

_BLOCK_ELEMENTS = 2**19  # of a block of rows times F: 2 MB


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x @ kernel; reverse mode, first order.

  With g the gradient of the result, dx = g kernel^T and dkernel = x^T g.

  Args:
    x: [R, n] rows, any float dtype; R may be 0.
    kernel: [n, m] any float dtype.

  Returns:
    [R, m] in the dtype of x. Each derivative is in the dtype of its argument.

  Raises:
    AssertionError: shapes don't fit, or a dtype is no float.
  """
  return _forward(x, kernel)[0]


def _forward(x, kernel):
  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  checks.ranks(2, x=x, kernel=kernel)
  checks.dtypes(float, x=x, kernel=kernel)
  checks.shapes((x.shape[1], None), kernel=kernel)
  return _product(x, kernel, 1, 0).astype(x.dtype), (x, kernel)


def _backward(kept, gradient):
  x, kernel = kept
  of_x = _product(gradient, kernel, 1, 1).astype(x.dtype)
  return of_x, _product(x, gradient, 0, 0).astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def swiglu(
  x: jax.Array,
  gate: jax.Array,
  up: jax.Array,
  down: jax.Array,
  *,
  recompute: bool = False,
) -> jax.Array:
  """(silu(x gate) * (x up)) down; reverse mode, first order.

  With a = x gate, b = x up, s = sigmoid(a), h = a s b, g the gradient of the
  result and e = g down^T,

    ddown = h^T g,  db = e a s,  da = e b s (1 + a (1 - s)).

  See "GLU Variants Improve Transformer" by Shazeer
  (https://arxiv.org/abs/2002.05202).

  Args:
    x: [R, D] rows, any float dtype; R may be 0.
    gate: [D, F] any float dtype.
    up: [D, F] any float dtype.
    down: [F, D] any float dtype.
    recompute: keeps x alone for the derivative, which makes a and b again: 11
      products instead of 9, and no array of [R, F] outlives the call. On CPU
      the rows then go in blocks that stay in its cache, and that is faster.
      Otherwise x, a and b are kept, and nothing of what lies between.

  Returns:
    [R, D] in the dtype of x, as are a, b and h; what lies between is of float32
    or better. Each derivative is in the dtype of its argument.

  Raises:
    AssertionError: shapes don't fit, or a dtype is no float.
  """
  checks.same_shape(gate=gate, up=up)
  x = jnp.asarray(x)
  kernels = jnp.asarray(gate), jnp.asarray(up), jnp.asarray(down)
  return _recomputed(x, kernels) if recompute else _kept(x, kernels)


@jax.custom_vjp
def _kept(x, kernels):
  return _gated(x, kernels)[0]


def _kept_forward(x, kernels):
  y, *products = _gated(x, kernels)
  return y, (x, products, kernels)


def _kept_backward(kept, gradient):
  x, products, kernels = kept
  of_x, sums = _of_swiglu(x, products, kernels, gradient)
  return of_x, _like(sums, kernels)


_kept.defvjp(_kept_forward, _kept_backward)


@jax.custom_vjp
def _recomputed(x, kernels):
  return _recomputed_forward(x, kernels)[0]


def _recomputed_forward(x, kernels):
  run = lambda x: _gated(x, kernels)[0]
  y = jax.lax.platform_dependent(
    x,
    cpu=lambda x: _join(jax.lax.map(run, _split(x, kernels[0])), x),
    default=run,
  )
  return y, (x, kernels)


def _recomputed_backward(kept, gradient):
  x, kernels = kept

  def run(x, gradient):
    _, *products = _gated(x, kernels)
    return _of_swiglu(x, products, kernels, gradient)

  def in_blocks(x, gradient):

    def add(sums, block):
      of_x, of_kernels = run(*block)
      return jax.tree.map(jnp.add, sums, of_kernels), of_x

    zeros = tuple(
      jnp.zeros_like(kernel, precision.dtype_of(x)) for kernel in kernels
    )
    blocks = _split(x, kernels[0]), _split(gradient, kernels[0])
    sums, of_x = jax.lax.scan(add, zeros, blocks)
    return _join(of_x, x), sums

  of_x, sums = jax.lax.platform_dependent(
    x, gradient, cpu=in_blocks, default=run
  )
  return of_x, _like(sums, kernels)


_recomputed.defvjp(_recomputed_forward, _recomputed_backward)


def _gated(x, kernels):
  """The result, and the products a and b with the gate and up."""
  gate, up, down = kernels
  a, b = matmul(x, gate), matmul(x, up)
  hidden = (jax.nn.silu(_wide(a)) * _wide(b)).astype(x.dtype)
  return matmul(hidden, down), a, b


def _of_swiglu(x, products, kernels, gradient):
  """Gradient of x, and those of the kernels before they are rounded."""
  gate, up, down = kernels
  wide_a, wide_b = map(_wide, products)
  sigmoid = jax.nn.sigmoid(wide_a)
  of_hidden = _product(gradient, down, 1, 1)
  of_a = of_hidden * wide_b * sigmoid * (1 + wide_a * (1 - sigmoid))
  parts = wide_a * sigmoid * wide_b, of_a, of_hidden * wide_a * sigmoid
  hidden, of_a, of_b = (part.astype(x.dtype) for part in parts)
  of_x = _product(of_a, gate, 1, 1) + _product(of_b, up, 1, 1)
  sums = (
    _product(x, of_a, 0, 0),
    _product(x, of_b, 0, 0),
    _product(hidden, gradient, 0, 0),
  )
  return of_x.astype(x.dtype), sums


def _split(x, gate):
  """[R, D] as blocks [N, R / N, D], the last one filled up with zeros."""
  count = max(1, -(-len(x) * gate.shape[1] // _BLOCK_ELEMENTS))
  size = -(-len(x) // count)
  x = jnp.pad(x, ((0, count * size - len(x)), (0, 0)))
  return x.reshape(count, size, x.shape[1])


def _join(blocks, x):
  """The inverse of `_split`."""
  return blocks.reshape(-1, x.shape[1])[: len(x)]


def _like(sums, kernels):
  return tuple(x.astype(kernel.dtype) for x, kernel in zip(sums, kernels))


def _product(x, y, x_axis, y_axis):
  """Product over one axis of each in the dtype of x, summed in float32."""
  return precision.dot(x, y.astype(x.dtype), x_axis, y_axis)


def _wide(x):
  return x.astype(precision.dtype_of(x))
