"""Products and their derivatives: by hand, in float64, and as programs."""

import functools
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import products
from tests import reference

_ROWS, _WIDTH, _HIDDEN = 3, 4, 5
_FORMS = {
  'matmul': products.matmul,
  'swiglu': products.swiglu,
  'recomputed': functools.partial(products.swiglu, recompute=True),
}
_PLAIN = {
  'matmul': lambda x, kernel: x @ kernel,
  'swiglu': lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down,
}
_PLAIN['recomputed'] = _PLAIN['swiglu']

# Blocks of a few rows, of which the last one is filled up.
_small_blocks = mock.patch.object(products, '_BLOCK_ELEMENTS', 48)
setUpModule, tearDownModule = _small_blocks.start, _small_blocks.stop


def _shapes(form, rows=_ROWS, width=_WIDTH, hidden=_HIDDEN):
  """Shapes of the arguments, and of the result."""
  if form == 'matmul':
    return (rows, width), (width, hidden), (rows, hidden)
  kernel = width, hidden
  return (rows, width), kernel, kernel, kernel[::-1], (rows, width)


def _arguments(form, *sizes, dtype=jnp.float32, kernel_dtype=None, seed=0):
  """Gradient of the result, rows and kernels."""
  rng = np.random.default_rng(seed)
  x, *kernels, result = (rng.normal(size=n) for n in _shapes(form, *sizes))
  wide = dtype if kernel_dtype is None else kernel_dtype
  return (
    jnp.asarray(result, dtype),
    jnp.asarray(x, dtype),
    *(jnp.asarray(kernel, wide) for kernel in kernels),
  )


@functools.partial(jax.jit, static_argnums=0)
def _results(function, gradient, *arguments):
  """The value and the derivative in each argument."""
  value, pullback = jax.vjp(function, *arguments)
  return value, *pullback(gradient)


def _in_float64(x, *kernels):
  """The value, row by row and hidden unit by hidden unit."""
  x, *kernels = (np.float64(array) for array in (x, *kernels))
  result = np.zeros((len(x), kernels[-1].shape[1]))
  for r, row in enumerate(x):
    if len(kernels) == 1:
      for i, entry in enumerate(row):
        result[r] += entry * kernels[0][i]
    else:
      gate, up, down = kernels
      for f in range(gate.shape[1]):
        a, b = sum(row * gate[:, f]), sum(row * up[:, f])
        result[r] += a / (1 + np.exp(-a)) * b * down[f]
  return result


def _slopes(gradient, *arguments, step=1e-5):
  """Central differences of <value, gradient> in each number."""
  arguments = [np.array(x, float) for x in arguments]
  slopes = [np.zeros(x.shape) for x in arguments]
  for x, slope in zip(arguments, slopes):
    for place in np.ndindex(x.shape):
      kept, ends = x[place], []
      for x[place] in (kept + step, kept - step):
        ends.append(np.sum(_in_float64(*arguments) * np.float64(gradient)))
      x[place] = kept
      slope[place] = (ends[0] - ends[1]) / (2 * step)
  return slopes


class ValueTest(parameterized.TestCase):
  def test_matmul_by_hand(self):
    arrays = [[[1.0]], [[2.0, 3.0]], [[5.0], [7.0]]]
    expected = [[31]], [[5, 7]], [[2], [3]]
    for x, y in zip(
      _results(products.matmul, *map(jnp.array, arrays)), expected
    ):
      np.testing.assert_array_equal(x, y)

  # With a = log 3: s = 3/4, and silu' = s (1 + a (1 - s)).
  def test_swiglu_by_hand(self):
    a = np.log(3)
    slope = 3 / 4 * (1 + a / 4)
    results = _results(
      products.swiglu, *(jnp.array([[x]]) for x in (1.0, 1.0, a, 2.0, 5.0))
    )
    expected = 7.5 * a, 10 * a * slope + 7.5 * a, 10 * slope, 3.75 * a, 1.5 * a
    np.testing.assert_allclose(np.ravel(results), expected, rtol=1e-6)

  @parameterized.product(form=list(_FORMS), rows=(1, _ROWS))
  def test_value_and_slopes(self, form, rows):
    arguments = _arguments(form, rows)
    value, *gradients = _results(_FORMS[form], *arguments)
    np.testing.assert_allclose(
      value, _in_float64(*arguments[1:]), rtol=1e-5, atol=1e-6
    )
    for gradient, slope in zip(gradients, _slopes(*arguments), strict=True):
      np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=3e-6)

  @parameterized.parameters(*_FORMS)
  def test_float64_is_computed_in_float64(self, form):
    with reference.x64():
      arguments = _arguments(form, dtype=jnp.float64)
      value, *gradients = _results(_FORMS[form], *arguments)
      np.testing.assert_allclose(value, _in_float64(*arguments[1:]), rtol=1e-13)
      for gradient, slope in zip(gradients, _slopes(*arguments), strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-9)

  # Shares of the largest number. bfloat16 has 8 bits, float16 has 11.
  @parameterized.product(
    form=list(_FORMS),
    case=(
      (jnp.float32, jnp.float32, 1e-6),
      (jnp.bfloat16, jnp.bfloat16, 2e-2),
      (jnp.bfloat16, jnp.float32, 2e-2),
      (jnp.float16, jnp.float32, 2e-3),
      (jnp.float32, jnp.bfloat16, 1e-2),
    ),
  )
  def test_plain_form(self, form, case):
    dtype, kernel_dtype, share = case
    arguments = _arguments(
      form, 40, 12, 24, dtype=dtype, kernel_dtype=kernel_dtype, seed=1
    )
    results = _results(_FORMS[form], *arguments)
    wide = [x.astype(jnp.float32) for x in arguments]
    expected = _results(_PLAIN[form], *wide)
    for x, y, like in zip(results, expected, arguments, strict=True):
      self.assertEqual(x.dtype, like.dtype)
      np.testing.assert_allclose(
        np.float32(x), y, rtol=0, atol=share * np.max(np.abs(y))
      )

  # 1001 needs 10 bits; a sum in bfloat16 stays at 256.
  def test_narrow_rows_are_summed_in_float32(self):
    ones = jnp.ones((1001, 1), jnp.bfloat16)
    # Without jit, which may leave a rounding out.
    results = functools.partial(_results.__wrapped__, products.matmul)
    _, _, of_kernel = results(ones, ones, jnp.ones((1, 1)))
    np.testing.assert_array_equal(of_kernel, [[1001]])
    value, of_x, _ = results(ones[:1], ones.T, ones)
    np.testing.assert_array_equal(np.float32(value), [[1000]])
    np.testing.assert_array_equal(np.float32(of_x), np.ones((1, 1001)))

  @parameterized.parameters(*_FORMS)
  def test_derivative_of_a_wide_kernel_is_not_rounded(self, form):
    arguments = _arguments(
      form, 40, 12, 24, dtype=jnp.bfloat16, kernel_dtype=jnp.float32
    )
    results = _results(_FORMS[form], *arguments)
    narrow = [x.astype(jnp.bfloat16) for x in arguments]
    # The same but for the rounding at the end: half a unit in the last place.
    for x, y in zip(results, _results(_FORMS[form], *narrow), strict=True):
      x, y = np.float32(x), np.float32(y)
      np.testing.assert_allclose(
        x, y, rtol=2**-8, atol=1e-5 * np.max(np.abs(y))
      )
    for x in results[2:]:
      rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
      self.assertGreater(np.mean(x != rounded), 0.9)

  def test_derivative_of_a_wide_kernel_is_a_sum(self):
    arguments = _arguments(
      'matmul', 40, 12, 24, dtype=jnp.bfloat16, kernel_dtype=jnp.float32
    )
    gradient, x = (np.float64(array) for array in arguments[:2])
    expected = np.zeros((12, 24))
    for row, of_row in zip(x, gradient):
      expected += row[:, None] * of_row
    of_kernel = _results(products.matmul, *arguments)[2]
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-5)


class DegenerateTest(parameterized.TestCase):
  @parameterized.parameters(*_FORMS)
  def test_no_rows(self, form):
    for dtype in (jnp.float32, jnp.bfloat16):
      arguments = _arguments(form, 0, dtype=dtype)
      for x, like in zip(
        _results(_FORMS[form], *arguments), arguments, strict=True
      ):
        np.testing.assert_array_equal(np.float32(x), np.zeros(like.shape))

  # silu'(a) is 1 and 0 far out, and a s (1 - s) must not be inf * 0.
  @parameterized.parameters(
    (1e4, 1e4, 1.0), (-1e4, 0.0, 0.0), (3e38, 3e38, 1.0), (-3e38, 0.0, 0.0)
  )
  def test_far_gate(self, a, silu, slope):
    one = jnp.ones((1, 1))
    results = _results(products.swiglu, one, one, a * one, one, one)
    for x, y in zip(results[0:1] + results[2:], (silu, slope, silu, silu)):
      np.testing.assert_array_equal(x, [[np.float32(y)]])

  @parameterized.parameters(*_FORMS)
  def test_nan_stays_in_its_row(self, form):
    gradient, x, *kernels = _arguments(form, 33, 12, 24)
    x = x.at[5, 3].set(jnp.nan)
    value, of_x, *of_kernels = _results(_FORMS[form], gradient, x, *kernels)
    bad = np.arange(33) == 5
    np.testing.assert_array_equal(np.isnan(value).any(axis=1), bad)
    if form != 'matmul':
      np.testing.assert_array_equal(np.isnan(of_x).any(axis=1), bad)
    for of_kernel in of_kernels:
      self.assertTrue(np.isnan(of_kernel).any())


class TransformationTest(parameterized.TestCase):
  @parameterized.product(
    form=list(_FORMS), over=('vmap', 'map', 'checkpoint', 'no_jit')
  )
  def test_runs(self, form, over):
    runs = [_arguments(form, 6, seed=seed) for seed in range(2)]
    stacked = [jnp.stack(arrays) for arrays in zip(*runs)]
    one = functools.partial(_results.__wrapped__, _FORMS[form])
    if over == 'vmap':
      found = jax.jit(jax.vmap(one))(*stacked)
    elif over == 'map':
      found = jax.jit(lambda *x: jax.lax.map(lambda x: one(*x), x))(*stacked)
    elif over == 'checkpoint':
      saved = jax.checkpoint(_FORMS[form])
      found = jax.vmap(functools.partial(_results.__wrapped__, saved))(*stacked)
    else:
      with jax.disable_jit():
        found = [jnp.stack(arrays) for arrays in zip(*(one(*x) for x in runs))]
    for i, run in enumerate(runs):
      expected = _results(_PLAIN[form], *run)
      for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(*_FORMS)
  def test_kernels_that_all_runs_share(self, form):
    gradient, _, *kernels = _arguments(form, 6)
    x = jnp.stack([_arguments(form, 6, seed=seed)[1] for seed in range(2)])

    def slopes(function):
      over_runs = jax.vmap(function, (0,) + len(kernels) * (None,))
      total = lambda *arrays: jnp.sum(over_runs(*arrays) * gradient)
      return jax.jit(jax.grad(total, range(1 + len(kernels))))(x, *kernels)

    for found, expected in zip(slopes(_FORMS[form]), slopes(_PLAIN[form])):
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

  def test_layers_in_a_scan(self):
    gradient, x, *kernels = _arguments('swiglu', 6)
    layers = [jnp.stack([kernel, -kernel]) for kernel in kernels]

    def slopes(function):
      layer = jax.checkpoint(
        lambda x, of_layer: (x + function(x, *of_layer), None)
      )
      total = lambda *arrays: jnp.sum(
        gradient * jax.lax.scan(layer, *arrays)[0]
      )
      return jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(x, layers))

    for found, expected in zip(
      slopes(products.swiglu), slopes(_PLAIN['swiglu'])
    ):
      np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected))
      )

  @parameterized.parameters(*_FORMS)
  def test_forward_mode_is_an_error(self, form):
    _, *arguments = _arguments(form)
    with self.assertRaisesRegex(TypeError, 'forward-mode'):
      jax.jvp(_FORMS[form], arguments, arguments)


class ProgramTest(parameterized.TestCase):
  def test_what_the_derivative_keeps(self):
    _, *arguments = _arguments('swiglu', 40, 12, 24, dtype=jnp.bfloat16)
    for form, of_rows in (
      ('swiglu', [(40, 12), (40, 24), (40, 24)]),
      ('recomputed', [(40, 12)]),
    ):
      _, pullback = jax.eval_shape(
        functools.partial(jax.vjp, _FORMS[form]), *arguments
      )
      kept = jax.tree.leaves(pullback)
      self.assertCountEqual(
        [x.shape for x in kept if x.shape[0] == 40], of_rows
      )
      self.assertEqual({x.dtype for x in kept}, {jnp.dtype('bfloat16')})

  def test_blocks_change_rounding_alone(self):
    arguments = _arguments('swiglu', 37, 12, 24)
    blocks = jax.jit(_results.__wrapped__, static_argnums=0)(
      _FORMS['recomputed'], *arguments
    )
    for x, y in zip(blocks, _results(products.swiglu, *arguments), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)

  def test_nothing_of_the_hidden_width_is_transposed(self):
    if jax.default_backend() != 'cpu':
      self.skipTest('on what the CPU compiler does')

    def total(x, kernels, weights):
      rows = products.swiglu(x.reshape(-1, 16), *kernels)
      return jnp.sum(jnp.sin(rows.reshape(x.shape)) * weights)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    x, kernels = shape(4, 40, 16), (shape(16, 80), shape(16, 80), shape(80, 16))
    slopes = jax.jit(jax.grad(total, (0, 1))).lower(x, kernels, x)
    # Of each array of all rows and hidden units, what lies next to each other.
    adjacent = set()
    for sizes, order in re.findall(
      r'f32\[([\d,]+)\]\{([\d,]+)', slopes.compile().as_text()
    ):
      sizes = [int(size) for size in sizes.split(',')]
      if np.prod(sizes) == 4 * 40 * 80:
        adjacent.add(sizes[int(order.split(',')[0])])
    self.assertEqual(adjacent, {80})


class ErrorTest(absltest.TestCase):
  def test_shapes_and_dtypes(self):
    _, x, kernel = map(np.asarray, _arguments('matmul', 4, 4))
    # Of three axes the middle one would be summed.
    for wrong in (
      (x[None], kernel),
      (x, kernel[None]),
      (x[0], kernel),
      (x[:, :3], kernel),
      (x.astype(int), kernel),
      (x, kernel.astype(int)),
    ):
      with self.assertRaises(AssertionError):
        jax.eval_shape(products.matmul, *wrong)
      with self.assertRaises(AssertionError):
        jax.vjp(products.matmul, *wrong)
    _, x, gate, up, down = map(np.asarray, _arguments('swiglu'))
    for wrong in (
      (x, gate[:, :1], up, down),
      (x, gate, up[:, :1], down),
      (x, gate, up, down[:1]),
      (x, gate, up, down[None]),
      (x, gate[:3], up[:3], down),
      (x[None], gate, up, down),
      (x, gate, up, down.astype(int)),
    ):
      with self.assertRaises(AssertionError):
        jax.eval_shape(products.swiglu, *wrong)


if __name__ == '__main__':
  absltest.main()
