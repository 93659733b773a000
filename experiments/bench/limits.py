"""What a device can do, measured, and what a workload asks of it."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from experiments.bench import workloads

_CALLS = 8  # that are waited for together
_ROUNDS = 5
# Numbers of the array to copy and size of the matrices, which fill a device.
_ON_CPU = 1 << 26, 2048, 'float32'
_ON_ACCELERATOR = 1 << 29, 8192, 'bfloat16'


def is_cpu() -> bool:
  """Whether JAX computes on the CPU."""
  return jax.default_backend() == 'cpu'


def fitting(
  wanted: Iterable[workloads.Workload],
) -> Iterator[workloads.Workload]:
  """Those that this device can run; a line names one that it can't."""
  for workload in wanted:
    if is_cpu() and workload == workloads.LARGE:
      timing.tell(f'{workload.name} is left out: it takes an accelerator')
    else:
      yield workload


def measure(
  copy_size: int | None = None, matmul_size: int | None = None
) -> timing.Limits:
  """Copy bandwidth, and rate of a square product.

  The product is in float32 on the CPU and in bfloat16 elsewhere.

  Args:
    copy_size: numbers of the array, large enough to fit into no cache; None: as
      the device needs.
    matmul_size: rows of the matrices; None: as the device needs.
  """
  copied, rows, dtype = _ON_CPU if is_cpu() else _ON_ACCELERATOR
  copied, rows = copy_size or copied, matmul_size or rows
  array = jnp.ones(copied, dtype)
  bandwidth = 2 * array.nbytes / _seconds(lambda x: x + 1, array)
  matrix = jnp.ones((rows, rows), dtype)
  rate = 2 * rows**3 / _seconds(lambda x: x @ x, matrix)
  return timing.Limits(
    round(bandwidth / 1e9, 3), round(rate / 1e9, 3), f'{rows}x{rows} {dtype}'
  )


def rollout_bytes(workload: workloads.Workload) -> int:
  """Bytes that decoding must read: for each token all weights and the cache.

  A prompt's keys and values are read once for all its responses; the cache
  holds the tokens so far and is not read beyond them.
  """
  width = jnp.dtype(workload.dtype).itemsize
  tokens = workload.response_len
  of_token = 2 * workload.num_layers * workload.key_heads * workload.head_dim
  prompts = tokens * workload.num_prompts * workload.prompt_len
  responses = workload.batch * tokens * (tokens + 1) // 2
  weights = tokens * workload.num_params
  return width * (weights + of_token * (prompts + responses))


def learning_flops(workload: workloads.Workload) -> int:
  """Operations of forward and backward pass over all sequences.

  6 for each weight and token, as "Scaling Laws for Neural Language Models" by
  Kaplan et al., https://arxiv.org/abs/2001.08361, counts; the output matrix
  sees the responses alone. To this come the products of attention, of visible
  logits. What is computed again to save memory is not counted.
  """
  length = workload.prompt_len + workload.response_len
  return (
    3
    * workload.batch
    * (
      _products(workload, length, workload.response_len)
      + _attention(workload, length, 0)
    )
  )


def rollout_flops(workload: workloads.Workload) -> int:
  """Operations of sampling: prompts once, then each token of each response.

  The last token of a response needs no logits after it, and isn't counted.
  """
  prompt, response = workload.prompt_len, workload.response_len
  prefill = _products(workload, prompt, 1) + _attention(workload, prompt, 0)
  decoding = _products(workload, response - 1, response - 1) + _attention(
    workload, prompt + response - 1, prompt
  )
  return workload.num_prompts * prefill + workload.batch * decoding


def _products(workload, tokens, with_logits):
  """Forward operations of the matrices on tokens of one sequence."""
  head = workload.vocab_size * workload.embed_dim
  return 2 * (workload.layer_matrices * tokens + head * with_logits)


def _attention(workload, length, cached):
  """Forward operations of attention of the tokens behind the cached ones."""
  visible = length * (length + 1) // 2 - cached * (cached + 1) // 2
  heads = workload.num_layers * workload.num_heads
  return 4 * workload.head_dim * heads * visible


def _seconds(function: Callable, argument: jax.Array) -> float:
  """Median time of a call, when several are under way."""
  program = jax.jit(function)
  jax.block_until_ready(program(argument))
  found = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready([program(argument) for _ in range(_CALLS)])
    found.append((time.perf_counter() - start) / _CALLS)
  return float(np.median(found))
