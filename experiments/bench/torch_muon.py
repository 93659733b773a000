"""The reference Muon in torch, in a process of its own that times itself.

torch need not be installed beside JAX: this file runs under any interpreter of
3.11 or later that has it, and imports nothing else from outside the standard
library. The process tells of itself in one line of JSON; then it reads lines
with a number of steps and answers each with the seconds that one step took.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import importlib
import json
import subprocess
import sys
import time

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def describe(python: str) -> dict:
  """Version and number of threads of the torch that an interpreter has.

  Raises:
    OSError: there is no such interpreter, or it has no torch.
  """
  result = subprocess.run(
    _command(python, (1, 1, 1)),
    input='',
    capture_output=True,
    text=True,
    check=False,
  )
  *_, reason = ('no answer', *result.stderr.splitlines())
  try:
    answer = json.loads(result.stdout)
  except ValueError as error:
    raise ChildProcessError(reason) from error
  if not isinstance(answer, dict) or 'torch_threads' not in answer:
    raise ChildProcessError(f'not what the worker says: {answer}')
  return answer


@contextlib.contextmanager
def worker(
  python: str, shape: tuple[int, ...]
) -> Iterator[Callable[[int], float]]:
  """A process that steps on `shape` = (count, n, m) matrices.

  Args:
    python: interpreter that has torch.
    shape: count, n and m.

  Yields:
    The seconds of one step, the mean of as many as are asked for.
  """
  with subprocess.Popen(
    _command(python, shape),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdin and process.stdout
    source, sink = process.stdout, process.stdin
    source.readline()  # what `describe` reads

    def seconds(repeats):
      print(repeats, file=sink, flush=True)
      answer = source.readline()
      if not answer:
        raise ChildProcessError(f'{python}: the process of torch ended')
      return float(answer)

    yield seconds


def update(gradient, momentum):
  """What one step adds to a matrix, but for the learning rate.

    M <- mu M + (1 - mu) G,  sqrt(max(1, n / m)) NewtonSchulz(M)

  with five steps in bfloat16: https://github.com/KellerJordan/Muon.
  """
  momentum.lerp_(gradient, 1 - _MOMENTUM)
  rows, columns = momentum.shape
  direction = _orthogonal(momentum)
  direction *= max(1, rows / columns) ** 0.5
  return direction


def _orthogonal(matrix):
  a, b, c = _COEFFICIENTS
  x = matrix.bfloat16()
  is_tall = matrix.shape[-2] > matrix.shape[-1]
  x = x.mT if is_tall else x
  x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
  for _ in range(5):
    gram = x @ x.mT
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.mT if is_tall else x


def _command(python, shape):
  # -P: the folder of this file would hide packages that have its names.
  return [python, '-P', __file__, *map(str, shape)]


def _serve(count, rows, columns):
  torch = importlib.import_module('torch')
  gradients = [torch.randn(rows, columns) for _ in range(count)]
  momenta = [torch.zeros(rows, columns) for _ in range(count)]
  about = {
    'torch': torch.__version__,
    'torch_threads': torch.get_num_threads(),
  }
  print(json.dumps(about), flush=True)
  for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
      # All of them are kept until the last is done, as a step has it.
      _ = [update(*pair) for pair in zip(gradients, momenta)]
    print((time.perf_counter() - start) / int(line), flush=True)


if __name__ == '__main__':
  _serve(*map(int, sys.argv[1:]))
