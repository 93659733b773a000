"""Newton-Schulz: the orthogonal factors of many matrices by products alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# What one step makes of a singular value s is a s + b s^3 + c s^5.
COEFFICIENTS = {
  # "Muon" by Jordan (https://kellerjordan.github.io/posts/muon/).
  'keller': ((3.4445, -4.7750, 2.0315),) * 5,
  # "The Polar Express" by Amsel et al. (https://arxiv.org/abs/2505.16932),
  # the first five steps.
  'polar_express': (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  ),
}
DTYPES = ('float32', 'bfloat16')

# Its authors divide singular values by this before each step: rounding lifts
# some of them above 1, where the polynomials grow.
_SAFETY = {'keller': 1.0, 'polar_express': 1.01}


def orthogonalize(
  matrices: Sequence[jax.Array],
  *,
  coefficients: str = 'keller',
  dtype: str = 'float32',
) -> list[jax.Array]:
  """Takes the singular values of each matrix to about 1.

    X <- M / |M|_F,  then five times  A = X X^T,  X <- a X + (b A + c A A) X

  With M = U diag(s) V^T this is U diag(f(s / |s|)) V^T, f being the composition
  of the polynomials a s + b s^3 + c s^5: for s / |s| from 0.01 to 1 it lies in
  [0.68, 1.14] (keller) or [0.87, 1.13] (polar_express), and it falls to 0 with
  s. See "Muon" by Jordan (https://kellerjordan.github.io/posts/muon/).

  Matrices of the same shape, or of its transpose, form one batch, so that the
  program doesn't grow with their number. On a CPU the batch is taken matrix by
  matrix, each of which uses all cores.

  Args:
    matrices: [..., n, m] each, of any floating dtype.
    coefficients: name in COEFFICIENTS.
    dtype: of the factors of each product, in DTYPES; sums are float32. float32
      keeps float64.

  Returns:
    Arrays of the same shapes and dtypes, whatever the scale of the matrices,
    as long as their entries are normal numbers; 0 for a matrix of zeros, NaN
    for one that isn't finite; an array without entries is returned as it is.

  Raises:
    ValueError: unknown coefficients or dtype.
  """
  check(coefficients, dtype)
  filled = {i: _wide(x) for i, x in enumerate(matrices) if 0 not in x.shape}
  results: dict[int, jax.Array] = {}
  for shape in dict.fromkeys(batch.shape[1:] for batch in filled.values()):
    members = [i for i, batch in filled.items() if batch.shape[1:] == shape]
    sizes = [len(filled[i]) for i in members]
    stack = jnp.concatenate([_normalized(filled[i]) for i in members])
    done = _newton_schulz(stack, coefficients, dtype)
    results |= zip(members, jnp.split(done, np.cumsum(sizes)[:-1]))
  return [
    _as_before(results[i], x) if i in results else x
    for i, x in enumerate(matrices)
  ]


def check(coefficients: str, dtype: str) -> None:
  """Raises ValueError for unknown coefficients or dtype."""
  if coefficients not in COEFFICIENTS:
    raise ValueError(
      f'{coefficients=}: must be one of {", ".join(COEFFICIENTS)}'
    )
  if dtype not in DTYPES:
    raise ValueError(f'{dtype=}: must be one of {", ".join(DTYPES)}')


def _wide(matrix):
  """[batch, short, long], transposed where that needs it."""
  if not 2 <= jnp.ndim(matrix) <= 8:
    raise AssertionError(
      f'a matrix of shape {jnp.shape(matrix)}: must have 2 to 8 axes'
    )
  rows, columns = matrix.shape[-2:]
  batch = matrix.reshape(-1, rows, columns)
  return jnp.swapaxes(batch, 1, 2) if rows > columns else batch


def _as_before(batch, matrix):
  """The inverse of _wide, with shape and dtype of the matrix."""
  if matrix.shape[-2] > matrix.shape[-1]:
    batch = jnp.swapaxes(batch, 1, 2)
  return batch.reshape(matrix.shape).astype(jnp.result_type(matrix))


def _normalized(batch):
  """M / |M|_F in float32 at least; squares neither overflow nor vanish."""
  batch = batch.astype(jnp.promote_types(batch.dtype, jnp.float32))
  largest = jnp.max(jnp.abs(batch), (1, 2), keepdims=True)
  # An exact power of two, in halves: 1 / largest can be too small a number.
  exponent = jnp.frexp(largest)[1]
  for part in (exponent // 2, exponent - exponent // 2):
    batch = batch * jnp.ldexp(jnp.ones_like(largest), -part)
  norm = jnp.linalg.norm(batch, axis=(1, 2), keepdims=True)
  return batch / jnp.where(norm == 0, 1, norm)


def _newton_schulz(batch, coefficients, dtype):
  """All steps on [batch, short, long]."""
  scale = _SAFETY[coefficients] ** np.array([1, 3, 5])
  steps = jnp.asarray(COEFFICIENTS[coefficients] / scale, batch.dtype)
  run = lambda x: jax.lax.scan(_step, x, steps)[0]
  factors = batch.astype(dtype) if dtype == 'bfloat16' else batch
  return jax.lax.platform_dependent(
    factors, cpu=lambda x: jax.lax.map(run, x), default=run
  )


def _step(x, coefficients):
  """One step on [..., short, long]; carry and result as `lax.scan` wants."""
  wide = jnp.promote_types(x.dtype, jnp.float32)

  def product(left, right):
    # Without a precision, float32 would be rounded further on GPU and TPU.
    return jnp.matmul(
      left,
      right,
      precision=None if x.dtype == jnp.bfloat16 else 'highest',
      preferred_element_type=wide,
    )

  a, b, c = coefficients
  gram = product(x, jnp.swapaxes(x, -1, -2))
  narrow = gram.astype(x.dtype)
  odd = (b * gram + c * product(narrow, narrow)).astype(x.dtype)
  return (a * x.astype(wide) + product(odd, x)).astype(x.dtype), None
