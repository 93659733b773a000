"""The process that times torch's Muon, with a script in the place of torch."""

import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_muon
from hmpo_jax.optim import orthogonal

_HELLO = """echo '{"torch": "2", "torch_threads": 3}'"""


class _Tensor(np.ndarray):
  """What the update uses of a tensor, in float64."""

  def lerp_(self, end, weight):
    """In place."""
    self += weight * (end - self)

  def bfloat16(self):
    """A copy, not rounded."""
    return self.copy()

  def norm(self, dim, keepdim):
    """Root of the sum of squares."""
    return np.linalg.norm(self, axis=dim, keepdims=keepdim)


def _interpreter(script):
  """Path of a program that runs a shell script, whatever it is asked."""
  path = pathlib.Path(tempfile.mkdtemp()) / 'python'
  path.write_text(f'#!/bin/sh\n{script}\n', encoding='utf-8')
  os.chmod(path, 0o755)
  return str(path)


class TorchMuonTest(parameterized.TestCase):
  @parameterized.parameters((3, 5, 1), (4, 4, 1), (8, 2, 2))
  def test_update_is_the_published_one(self, rows, columns, scale):
    rng = np.random.default_rng(0)
    gradient, momentum = rng.normal(size=(2, rows, columns))
    new = 0.95 * momentum + 0.05 * gradient
    momentum = momentum.view(_Tensor)
    result = torch_muon.update(gradient.view(_Tensor), momentum)
    np.testing.assert_allclose(momentum, new, rtol=1e-12)
    (direction,) = orthogonal.orthogonalize([jnp.float32(new)])
    np.testing.assert_allclose(result, scale * direction, atol=1e-4)

  def test_worker_answers_line_by_line(self):
    python = _interpreter(f'{_HELLO}; while read n; do echo $n.5; done')
    self.assertEqual(
      torch_muon.describe(python), {'torch': '2', 'torch_threads': 3}
    )
    with torch_muon.worker(python, (2, 3, 4)) as seconds:
      self.assertEqual([seconds(1), seconds(7)], [1.5, 7.5])

  def test_worker_is_told_its_shape(self):
    python = _interpreter('echo; read n; echo $3$4$5')
    with torch_muon.worker(python, (2, 3, 4)) as seconds:
      self.assertEqual(seconds(1), 234)

  def test_worker_that_ends_is_an_error(self):
    python = _interpreter(f'{_HELLO}; read n')
    with self.assertRaisesRegex(ChildProcessError, 'ended'):
      with torch_muon.worker(python, (1, 1, 1)) as seconds:
        seconds(1)

  @parameterized.parameters(
    ('echo Traceback >&2; echo "no torch" >&2; exit 1', 'no torch'),
    ('exit 0', 'no answer'),
    ('echo "[1]"', r'not what the .* says: \[1\]'),
    ('echo "{}"', 'not what the worker says: {}'),
  )
  def test_interpreter_without_torch_says_why(self, script, reason):
    with self.assertRaisesRegex(OSError, f'^{reason}$'):
      torch_muon.describe(_interpreter(script))

  def test_missing_interpreter_is_an_os_error(self):
    with self.assertRaisesRegex(OSError, 'No such file'):
      torch_muon.describe('/no/such/python')


if __name__ == '__main__':
  absltest.main()
