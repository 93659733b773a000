"""Messages of the kernels' checks name the argument."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import advantages
from hmpo_jax.kernels import checks
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import means
from hmpo_jax.ops import attention
from hmpo_jax.ops import logprobs
from hmpo_jax.ops import products
from hmpo_jax.ops import vocabulary

_X, _MASK = np.ones((2, 3), np.float32), np.ones((2, 3), bool)


def _loss(*arrays):
  return losses.grpo_loss(*arrays, clip_eps_low=0.2, clip_eps_high=0.2)


class ChecksTest(parameterized.TestCase):
  def test_what_is_right_passes(self):
    checks.ranks(2, x=_X, mask=_MASK)
    checks.ranks(0, number=1.0)
    checks.shapes((2, None), x=_X)
    checks.same_shape(x=_X, mask=_MASK)
    checks.dtypes(float, x=_X, narrow=jnp.bfloat16(1))
    checks.dtypes(int, number=1, narrow=np.int8(1))
    checks.dtypes(bool, mask=_MASK)
    checks.dtypes(jnp.float32, x=_X)
    checks.divides(2, 4, 'heads')
    checks.divides(0, 0, 'sequences')

  @parameterized.parameters(
    (
      lambda: checks.ranks(1, a=_X[0], b=_X),
      r'^b has rank 2, shape \(2, 3\): must have rank 1$',
    ),
    (
      lambda: checks.shapes((2, None), a=_X, b=_X.T),
      r'^b has shape \(3, 2\): must be \(2, any\)$',
    ),
    (lambda: checks.shapes((2, 3), a=_X[0]), r'^a has shape \(3,\): '),
    (
      lambda: checks.same_shape(a=_X, b=_X.T),
      r'^must have one shape: a \(2, 3\), b \(3, 2\)$',
    ),
    (
      lambda: checks.dtypes(bool, a=_MASK, b=_X),
      '^b has dtype float32: must be bool$',
    ),
    (lambda: checks.dtypes(int, a=_MASK), '^a has dtype bool: must be int$'),
    (lambda: checks.dtypes(jnp.bfloat16, a=_X), 'must be .*bfloat16'),
    (lambda: checks.divides(3, 4, 'heads'), '^heads: 3 must divide 4$'),
    (lambda: checks.divides(0, 4, 'heads'), '^heads: 0 must divide 4$'),
  )
  def test_what_is_wrong(self, call, message):
    with self.assertRaisesRegex(AssertionError, message):
      call()

  @parameterized.parameters(
    (lambda: means.log_power_mean(_X, _X, 1.0), '^mask has dtype float32'),
    (lambda: means.log_power_mean(_X[0], _MASK, 1.0), '^log_x has rank 1'),
    (lambda: _loss(_X, _X, _X[:, 0], _X), '^mask has dtype float32'),
    (lambda: _loss(_X, _X[:, :1], _X[:, 0], _MASK), r'old_logprobs \(2, 1\)'),
    (lambda: _loss(_X, _X, _X[0], _MASK), r'^advantages has shape \(3,\)'),
    (
      lambda: kl.kl_penalty(_X, _X[0], _MASK, estimator='k2'),
      '^ref_logprobs has rank 1',
    ),
    (lambda: advantages.group_advantages(_X[0]), '^rewards has rank 1'),
    (
      lambda: logprobs.token_logprobs(_X, jnp.zeros(3, int), 1.0),
      r'^tokens has shape \(3,\): must be \(2,\)',
    ),
    (
      lambda: products.matmul(_X, _X),
      r'^kernel has shape \(2, 3\): '
      r'must be \(3, any\)',
    ),
    (
      lambda: vocabulary.token_logprobs_and_entropy(_X, _X, jnp.zeros(2), 1.0),
      '^tokens has dtype float32: must be int',
    ),
    (
      lambda: attention.causal_attention(
        jnp.ones((1, 2, 3, 4)),
        jnp.ones((1, 2, 3, 4)),
        jnp.ones((1, 2, 3, 4)),
        jnp.ones((1, 3), bool),
      ),
      r'^valid has shape \(1, 3\): must be \(1, 2\)',
    ),
  )
  def test_kernels_name_the_argument(self, call, message):
    with self.assertRaisesRegex(AssertionError, message):
      call()


if __name__ == '__main__':
  absltest.main()
