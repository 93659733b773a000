"""Matrix products of many rows, with derivatives that the CPU likes too.

The values are those of `x @ kernel`. Rows are one axis, and the derivative is
asked for as two products of matrices that lie in memory: for x of [B, T, n],
XLA's CPU compiler writes the elementwise work before a kernel's derivative into
a transposed array [n, B, T], at several times the cost of the product itself.

Kernels may be of another type than x (float32 masters under bfloat16 compute):
they are rounded to that of x, sums are of float32 or better, and a kernel's
derivative is those sums, without a rounding to the type of x between.
"""

import chex
import jax
import jax.numpy as jnp


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
  chex.assert_rank([x, kernel], 2)
  chex.assert_type([x, kernel], float)
  chex.assert_equal(x.shape[1], kernel.shape[0])
  return _product(x, kernel, 1, 0).astype(x.dtype), (x, kernel)


def _backward(kept, gradient):
  x, kernel = kept
  gradient = jax.lax.optimization_barrier(gradient)
  of_x = _product(gradient, kernel, 1, 1).astype(x.dtype)
  return of_x, _of_kernel(x, gradient, kernel)


matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def swiglu(x: jax.Array, gate: jax.Array, up: jax.Array,
           down: jax.Array) -> jax.Array:
  """(silu(x gate) * (x up)) down; reverse mode, first order.

  Of all arrays of R rows, x and the two products are kept for the derivative,
  and not what lies between them and the result. With a = x gate,
  b = x up, s = sigmoid(a), h = a s b and e = g down^T,

    ddown = h^T g,  db = e a s,  da = e b s (1 + a (1 - s)).

  See "GLU Variants Improve Transformer" by Shazeer
  (https://arxiv.org/abs/2002.05202).

  Args:
    x: [R, D] rows, any float dtype; R may be 0.
    gate: [D, F] any float dtype.
    up: [D, F] any float dtype.
    down: [F, D] any float dtype.

  Returns:
    [R, D] in the dtype of x, as are a, b and h; what lies between is of float32
    or better. Each derivative is in the dtype of its argument.

  Raises:
    AssertionError: shapes don't fit, or a dtype is no float.
  """
  return _swiglu_forward(x, gate, up, down)[0]


def _swiglu_forward(x, gate, up, down):
  chex.assert_equal_shape([gate, up])
  gated, upper = matmul(x, gate), matmul(x, up)
  hidden = (jax.nn.silu(_wide(gated)) * _wide(upper)).astype(x.dtype)
  return matmul(hidden, down), (x, gated, upper, gate, up, down)


def _swiglu_backward(kept, gradient):
  x, gated, upper, gate, up, down = kept
  gradient = jax.lax.optimization_barrier(gradient)
  a, b = _wide(gated), _wide(upper)
  sigmoid = jax.nn.sigmoid(a)
  of_hidden = _product(gradient, down, 1, 1)
  of_gated = of_hidden * b * sigmoid * (1 + a * (1 - sigmoid))
  parts = a * sigmoid * b, of_gated, of_hidden * a * sigmoid
  hidden, of_gated, of_upper = jax.lax.optimization_barrier(
      tuple(part.astype(x.dtype) for part in parts))
  of_x = _product(of_gated, gate, 1, 1) + _product(of_upper, up, 1, 1)
  return (of_x.astype(x.dtype), _of_kernel(x, of_gated, gate),
          _of_kernel(x, of_upper, up), _of_kernel(hidden, gradient, down))


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def _of_kernel(x, gradient, kernel):
  return _product(x, gradient, 0, 0).astype(kernel.dtype)


def _product(x, y, x_axis, y_axis):
  """Product over one axis of each in the dtype of x, summed in float32."""
  return jax.lax.dot_general(
      x,
      y.astype(x.dtype), (((x_axis,), (y_axis,)), ((), ())),
      preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
