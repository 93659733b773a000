"""Newton-Schulz against scalar polynomials, and what it mustn't depend on."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from hmpo_jax.optim import orthogonal
from tests import muon_reference as reference
from tests import reference as double

_NAMES = tuple(orthogonal.COEFFICIENTS)
_orthogonalize = jax.jit(
  orthogonal.orthogonalize, static_argnames=('coefficients', 'dtype')
)


def _one(matrix, **options):
  return np.asarray(_orthogonalize([jnp.asarray(matrix)], **options)[0])


def _factors(rows, columns, seed):
  """U [rows, r], s [r] from 1 down to 0.03 and V [columns, r] in float64."""
  rng = np.random.default_rng(seed)
  rank = min(rows, columns)
  left, right = (
    np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (rows, columns)
  )
  return left, np.geomspace(1, 0.03, rank), right


def _matrices(shapes):
  """Matrices, and what the polynomials make of their singular values."""
  matrices, expected = [], {name: [] for name in _NAMES}
  for seed, shape in enumerate(shapes):
    left, s, right = _factors(*shape, seed)
    matrices.append(left * s @ right.T)
    for name in _NAMES:
      mapped = reference.polynomials(s / np.linalg.norm(s), name)
      expected[name].append(left * mapped @ right.T)
  return matrices, expected


def _gaussian(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).normal(size=shape))


def _products(function, *args):
  """The matrix products in the program of a function."""
  found = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == 'dot_general':
        found.append(equation)
      for inner in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda node: hasattr(node, 'eqns') or hasattr(node, 'jaxpr'),
      ):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          visit(inner)

  visit(jax.make_jaxpr(function)(*args).jaxpr)
  return found


class ValueTest(parameterized.TestCase):
  @parameterized.product(coefficients=_NAMES, is_double=(False, True))
  def test_singular_values_follow_the_polynomials(
    self, coefficients, is_double
  ):
    shapes = (6, 9), (9, 6), (7, 7), (6, 9), (1, 5), (5, 1), (1, 1)
    matrices, expected = _matrices(shapes)
    if is_double:
      with double.x64():
        results = _orthogonalize(
          [jnp.float64(matrix) for matrix in matrices],
          coefficients=coefficients,
        )
    else:
      results = _orthogonalize(
        [jnp.float32(matrix) for matrix in matrices], coefficients=coefficients
      )
    for result, matrix in zip(results, expected[coefficients], strict=True):
      self.assertEqual(result.dtype, np.float64 if is_double else np.float32)
      np.testing.assert_allclose(
        result, matrix, rtol=0, atol=1e-12 if is_double else 3e-5
      )

  # The largest and the least value of the polynomials on [0.01, 1].
  @parameterized.parameters(
    ('keller', 0.682, 1.134), ('polar_express', 0.870, 1.124)
  )
  def test_range(self, coefficients, low, high):
    # diag(s, sqrt(1 - s^2)) has norm 1.
    s = np.geomspace(0.01, 1, 4001)
    matrices = np.zeros((len(s), 2, 2))
    matrices[:, 0, 0], matrices[:, 1, 1] = s, np.sqrt(1 - s**2)
    values = _one(np.float32(matrices), coefficients=coefficients)[:, 0, 0]
    np.testing.assert_allclose(
      [values.min(), values.max()], [low, high], atol=5e-4
    )
    np.testing.assert_allclose(
      values, reference.polynomials(s, coefficients), atol=3e-5
    )

  @parameterized.product(
    coefficients=_NAMES, shape=((16, 16), (8, 64), (64, 8))
  )
  def test_bfloat16_is_near(self, coefficients, shape):
    matrix = _gaussian(*shape)
    exact = _one(matrix, coefficients=coefficients)
    near = _one(matrix, coefficients=coefficients, dtype='bfloat16')
    self.assertEqual(near.dtype, np.float32)
    self.assertFalse(np.array_equal(near, exact))
    self.assertLess(np.abs(near - exact).max(), 0.06)
    values = np.linalg.svd(near, compute_uv=False)
    self.assertBetween(values.max(), 0.68, 1.25)

  @parameterized.parameters(np.float16, jnp.bfloat16)
  def test_narrow_inputs(self, dtype):
    matrix = np.asarray(_gaussian(6, 9)).astype(dtype)
    result = _one(matrix)
    self.assertEqual(result.dtype, dtype)
    expected = _one(matrix.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(result, expected)

  def test_float16_near_its_limits(self):
    matrix = np.float16(_gaussian(6, 9) / 4)
    expected = _one(matrix)
    for scale in (2.0**14, 2.0**-9):
      np.testing.assert_allclose(
        _one(matrix * np.float16(scale)).astype(float),
        expected.astype(float),
        atol=3e-3,
      )


class InvarianceTest(parameterized.TestCase):
  @parameterized.parameters(1e-30, 1e-20, 1e-6, 3.0, 1e6, 1e20, 1e30)
  def test_scale(self, scale):
    for coefficients in _NAMES:
      np.testing.assert_allclose(
        _one(_gaussian(6, 9) * np.float32(scale), coefficients=coefficients),
        _one(_gaussian(6, 9), coefficients=coefficients),
        rtol=0,
        atol=1e-5,
      )

  @parameterized.parameters(2e-38, 9e37, 3.3e38)
  def test_last_scales_of_float32(self, scale):
    matrix = np.float32(scale) * np.eye(4, 6, dtype=np.float32)
    np.testing.assert_allclose(
      _one(matrix), _one(np.eye(4, 6, dtype=np.float32)), rtol=1e-6
    )

  def test_scales_beyond_float32(self):
    with double.x64():
      expected = _one(np.float64(_gaussian(6, 9)))
      for scale in (1e-300, 1e300):
        np.testing.assert_allclose(
          _one(np.float64(_gaussian(6, 9)) * scale), expected, atol=1e-12
        )

  def test_scales_side_by_side(self):
    # Each matrix of a batch has its own norm.
    scales = np.float32([1e-20, 1.0, 1e20])[:, None, None]
    results = _one(_gaussian(6, 9) * scales)
    for result in results:
      np.testing.assert_allclose(result, _one(_gaussian(6, 9)), atol=1e-5)

  def test_transpose(self):
    matrix = _gaussian(6, 9)
    np.testing.assert_array_equal(_one(matrix.T), _one(matrix).T)

  def test_rotations(self):
    left, _, right = _factors(6, 6, 1)
    turn, _, _ = _factors(9, 9, 2)
    left = left @ right.T
    matrix = _gaussian(6, 9)
    np.testing.assert_allclose(
      _one(np.float32(left @ matrix @ turn)),
      left @ _one(matrix) @ turn,
      atol=5e-6,
    )

  def test_zero_stays_zero(self):
    for dtype in orthogonal.DTYPES:
      for coefficients in _NAMES:
        np.testing.assert_array_equal(
          _one(
            np.zeros((2, 6, 9), np.float32),
            coefficients=coefficients,
            dtype=dtype,
          ),
          0,
        )

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_nonfinite_spoils_its_own_matrix_alone(self, value):
    stack = _gaussian(3, 6, 9)
    expected = _one(stack)
    stack[1, 2, 3] = value
    first, second = _orthogonalize([stack, _gaussian(9, 6)])
    self.assertTrue(np.isnan(first[1]).all())
    np.testing.assert_array_equal(first[::2], expected[::2])
    self.assertTrue(np.isfinite(second).all())


class BatchTest(parameterized.TestCase):
  def test_equals_one_by_one(self):
    matrices = [
      _gaussian(*shape, seed=seed)
      for seed, shape in enumerate(
        ((6, 9), (2, 9, 6), (4, 4), (2, 3, 6, 9), (9, 6), (3, 4, 4))
      )
    ]
    results = _orthogonalize(matrices)
    for matrix, result in zip(matrices, results, strict=True):
      self.assertEqual(result.shape, matrix.shape)
      for at in np.ndindex(matrix.shape[:-2]):
        np.testing.assert_allclose(
          result[at], _one(matrix[at]), rtol=0, atol=1e-6
        )

  def test_of_several_dtypes(self):
    matrices = [
      jnp.asarray(_gaussian(6, 9, seed=seed), dtype)
      for seed, dtype in enumerate((jnp.float32, jnp.bfloat16, jnp.float16))
    ]
    for matrix, result in zip(matrices, _orthogonalize(matrices), strict=True):
      self.assertEqual(result.dtype, matrix.dtype)
      np.testing.assert_array_equal(result, _one(matrix))

  def test_under_vmap(self):
    stack = _gaussian(3, 6, 9)
    mapped = jax.jit(
      jax.vmap(lambda matrix: orthogonal.orthogonalize([matrix])[0])
    )(stack)
    np.testing.assert_allclose(mapped, _one(stack), atol=1e-6)

  def test_of_nothing(self):
    self.assertEqual(orthogonal.orthogonalize([]), [])

  def test_program_does_not_grow_with_matrices_of_one_shape(self):
    count = lambda *shapes: len(
      _products(orthogonal.orthogonalize, [np.zeros(s) for s in shapes])
    )
    one = count((6, 9))
    self.assertGreater(one, 0)
    self.assertEqual(count((6, 9), (9, 6), (5, 6, 9), (2, 2, 9, 6)), one)
    self.assertEqual(count((6, 9), (6, 6), (9, 6), (6, 6)), 2 * one)

  @parameterized.parameters(('float32', np.float32), ('bfloat16', jnp.bfloat16))
  def test_factors_and_sums_of_each_product(self, name, dtype):
    products = _products(
      functools.partial(orthogonal.orthogonalize, dtype=name), [_gaussian(6, 9)]
    )
    for product in products:
      self.assertEqual([x.aval.dtype for x in product.invars], [dtype] * 2)
      self.assertEqual(product.outvars[0].aval.dtype, np.float32)
      precision = product.params['precision']
      if name == 'float32':
        self.assertEqual(precision, (jax.lax.Precision.HIGHEST,) * 2)

  @parameterized.parameters(*orthogonal.DTYPES)
  def test_lowers_for_every_platform(self, dtype):
    exported = export.export(_orthogonalize, platforms=('cpu', 'cuda', 'tpu'))(
      [_gaussian(6, 9), _gaussian(2, 4, 3)], dtype=dtype
    )
    self.assertEqual(exported.platforms, ('cpu', 'cuda', 'tpu'))


class ErrorsTest(parameterized.TestCase):
  def test_names(self):
    with self.assertRaisesRegex(
      ValueError, "coefficients='cubic': must be one of keller, polar_expr"
    ):
      orthogonal.orthogonalize([_gaussian(2, 2)], coefficients='cubic')
    with self.assertRaisesRegex(
      ValueError, "dtype='float16': must be one of float32, bfloat16"
    ):
      orthogonal.orthogonalize([_gaussian(2, 2)], dtype='float16')

  def test_vectors(self):
    with self.assertRaises(AssertionError):
      orthogonal.orthogonalize([_gaussian(3)])

  def test_one_program(self):
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(orthogonal.orthogonalize, n=1))
    for seed in range(3):
      run([_gaussian(6, 9, seed=seed)])


if __name__ == '__main__':
  absltest.main()
