"""Log-probabilities of tokens and their gradient, with and without all logits.

Each variant goes from hidden states [R, D], a head [D, V] and tokens [R] to
sum_r c_r log pi_r(y_r), with fixed random c, and its gradient in hidden states
and head; the shape is R x D x V. What every one of them returns, the gradients,
is among the outputs and not in the temporary memory. The baseline makes all
logits and takes their log-softmax; 'checkpoint' makes them again in the
backward pass. GFLOP/s count the three products of a backward pass that keeps
its logits, or the four of one that doesn't.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from hmpo_jax.ops import logprobs
from hmpo_jax.ops import vocabulary

_BASELINE, _CHECKPOINT = 'naive', 'checkpoint of naive'
_DTYPES = ('float32', 'bfloat16')
_CHUNK_SIZES = (512, 1024, 2048, 4096, 8192)
_VALUE, _BOTH = 'logprobs', 'logprobs and entropies'


def measure(options: timing.Options) -> list[timing.Row]:
  """Times a group for each shape (R, D, V) and dtype; the baseline always."""
  rows = []
  for shape in options.shapes:
    for dtype in _DTYPES:
      cases = list(_cases(shape, dtype, options))
      label = f'{"x".join(map(str, shape))} {dtype}'
      rows += options.timed(label, cases, fill_caches=False)
  return rows


def variants() -> dict:
  """Name -> f(hidden, head, tokens), log-probabilities and entropies."""
  ours = lambda **options: functools.partial(
    vocabulary.token_logprobs_and_entropy, temperature=1.0, **options
  )
  return {
    _BASELINE: _naive,
    _CHECKPOINT: jax.checkpoint(_naive),
    'chunks': ours(),
    'chunks, tied': ours(vocab_axis=0),
    **{f'chunks of {size}': ours(chunk_size=size) for size in _CHUNK_SIZES},
  }


def _naive(hidden, head, tokens):
  logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
  return (
    logprobs.token_logprobs(logits, tokens, 1.0),
    logprobs.entropy(logits, 1.0),
  )


def _cases(shape, dtype, options):
  """The baseline, and what is wanted."""
  hidden, head, tokens, weights = _arguments(dtype, *shape)
  for variant, function in variants().items():
    for mode in (_VALUE, _BOTH):
      if (variant, mode) != (_BASELINE, _VALUE) and not options.wants(variant):
        continue
      if mode == _BOTH and 'chunks of' in variant:
        continue
      matrix = head.T if 'tied' in variant else head
      program = timing.compiled(
        _gradients(function, mode), hidden, matrix, tokens, weights
      )
      call = functools.partial(program.call, hidden, matrix, tokens, weights)
      products = 3 if variant == _BASELINE else 4
      yield timing.Case(
        variant,
        mode,
        timing.wall_clock(call),
        program,
        2 * products * np.prod(shape),
      )


def _gradients(function, mode):
  """Value and gradient of the weighted sum."""

  def objective(hidden, head, tokens, weights):
    logprobs_, entropies = function(hidden, head, tokens)
    values = logprobs_ + entropies if mode == _BOTH else logprobs_
    return jnp.sum(weights * values)

  return jax.value_and_grad(objective, (0, 1))


def _arguments(dtype, num_rows, width, vocab_size):
  """Hidden states of variance 1, and a head as models start with."""
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(num_rows, width))
  head = 0.02 * rng.normal(size=(width, vocab_size))
  tokens = rng.integers(0, vocab_size, size=num_rows)
  weights = rng.normal(size=num_rows)
  return (
    jnp.asarray(hidden, dtype),
    jnp.asarray(head, dtype),
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


SUITE = timing.Suite(measure, variants, shapes=('2048x512x32768',), rounds=7)
