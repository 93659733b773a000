"""Muon against other optimizers, and the QK-clip against a train step.

A group for each shape times one update of that many matrices: gradients and
state in, updates and the next state, on the same memory, out; the parameters
stay as they are. Matrices are separate leaves or one stacked leaf. The baseline
is optax's Muon as shipped. Beside Muon in torch stands the rate of a plain
float32 product. GFLOP/s count the products of Newton-Schulz alone.

The last group times the default train step with the QK-clip and without it
(which monitors the logits too), and the clip of all its updates by itself: the
difference of two steps would not resolve so little.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import ours as ours_lib
from experiments.bench import timing
from experiments.bench import torch_muon
from hmpo_jax.model import transformer
from hmpo_jax.optim import muon
from hmpo_jax.optim import muon_clip
from hmpo_jax.training import programs as programs_lib

_BASELINE, _TORCH = 'optax muon', 'torch muon'
_MATMUL_SIZE = 2048
_MATMUL = f'float32 matmul {_MATMUL_SIZE}'
_STEP, _CLIP = 'train step', 'qk_clip alone'
_LEARNING_RATE = 1e-3
_SEPARATE, _STACKED = 'separate', 'stacked'
# A train step is short and the clip a small part of it: rounds for each of
# those of the updates.
_STEP_ROUNDS = 8


def measure(options: timing.Options) -> list[timing.Row]:
  """Times updates of shapes (count, n, m) and train steps; see above.

  A group of which no variant is wanted is left out; what it is held to, and
  the plain product, are always in it.
  """
  rows = []
  if any(map(options.wants, _update_variants())):
    for shape in options.shapes:
      rows += _update_rows(shape, options)
  if any(map(options.wants, (_STEP, _CLIP))):
    rows += _step_rows(options)
  return rows


def newton_schulz_flops(count: int, rows: int, columns: int) -> int:
  """Operations of five steps on that many matrices of that shape."""
  short, long = sorted((rows, columns))
  return count * 5 * (4 * short**2 * long + 2 * short**3)


def variants() -> tuple[str, ...]:
  """Names of all that can be chosen."""
  return *_update_variants(), _STEP, _CLIP


def _update_variants():
  return *_transformations(None), _TORCH


def _transformations(specs):
  """Name -> optimizer and the layouts in which it is timed."""
  ours = functools.partial(
    muon.muon,
    _LEARNING_RATE,
    dimension_numbers=specs,
    adam_learning_rate=_LEARNING_RATE,
  )
  theirs = optax.contrib.muon(
    _LEARNING_RATE,
    nesterov=False,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=specs,
  )
  both = _SEPARATE, _STACKED
  return {
    _BASELINE: (theirs, both),
    'optax adamw': (optax.adamw(_LEARNING_RATE), (_SEPARATE,)),
    'muon float32': (ours(), both),
    'muon bfloat16': (ours(dtype='bfloat16'), both),
    'muon float32 polar_express': (
      ours(coefficients='polar_express'),
      (_SEPARATE,),
    ),
  }


def _update_rows(shape, options):
  cases = [
    case
    for layout in (_SEPARATE, _STACKED)
    for case in _update_cases(shape, layout, options)
  ]
  with contextlib.ExitStack() as stack:
    if options.torch_python and options.wants(_TORCH):
      seconds = stack.enter_context(
        torch_muon.worker(options.torch_python, shape)
      )
      flops = newton_schulz_flops(*shape)
      cases.append(
        timing.Case(_TORCH, _SEPARATE, seconds, flops=flops, is_here=False)
      )
    cases.append(_matmul_case())
    return options.timed('x'.join(map(str, shape)), cases, fill_caches=False)


def _update_cases(shape, layout, options):
  """All cases on one layout of the matrices."""
  gradients, params = (_matrices(seed, shape, layout) for seed in range(2))
  axes = ((0,), (1,)) if layout == _SEPARATE else ((1,), (2,))
  specs = {name: optax.contrib.MuonDimensionNumbers(*axes) for name in params}
  for variant, (transformation, layouts) in _transformations(specs).items():
    is_baseline = (variant, layout) == (_BASELINE, _SEPARATE)
    if layout in layouts and (is_baseline or options.wants(variant)):
      flops = None
      if 'muon' in variant:
        flops = newton_schulz_flops(*shape)
      yield _update_case(
        variant, layout, transformation, gradients, params, flops
      )


def _update_case(variant, layout, transformation, gradients, params, flops):
  state = transformation.init(params)
  program = timing.compiled(
    transformation.update, gradients, state, params, donate=(1,)
  )

  def update():
    nonlocal state
    updates, state = program.call(gradients, state, params)
    return updates

  return timing.Case(variant, layout, timing.wall_clock(update), program, flops)


def _matrices(seed, shape, layout):
  """Normal matrices by name."""
  rng = np.random.default_rng(seed)
  stacked = rng.normal(size=shape).astype(np.float32)
  if layout == _STACKED:
    return {_STACKED: jnp.asarray(stacked)}
  return {str(i): jnp.asarray(matrix) for i, matrix in enumerate(stacked)}


def _matmul_case():
  matrix = _matrices(0, (1, _MATMUL_SIZE, _MATMUL_SIZE), _SEPARATE)['0']
  program = timing.compiled(jnp.matmul, matrix, matrix)
  call = functools.partial(program.call, matrix, matrix)
  return timing.Case(
    _MATMUL,
    'one product',
    timing.wall_clock(call),
    program,
    flops=2 * _MATMUL_SIZE**3,
  )


def _step_rows(options):
  """Train steps, and what the clip does in one; no clip is the baseline."""
  config = options.config
  params = programs_lib.Programs(config).warm_params()
  cases = [_step_case(config, params, mode) for mode in ('off', 'weights')]
  if options.wants(_CLIP):
    cases += [_clip_case(config, params, mode) for mode in ('off', 'weights')]
  num_updates = config.train.num_epochs * config.train.num_minibatches
  return options.timed(
    f'step of {num_updates} updates', cases, _STEP_ROUNDS * options.rounds
  )


def _step_case(config, params, mode):
  config = config.copy_and_resolve_references()
  config.optim.qk_clip = mode
  programs = programs_lib.Programs(config)
  # The step uses up its state, and the other step starts from these too.
  state = programs.first_state(jax.tree.map(jnp.copy, params))
  program, step = ours_lib.stepper_from(
    ours_lib.Start(programs.static, programs.hparams, state)
  )
  return timing.Case(_STEP, f'qk_clip {mode}', timing.wall_clock(step), program)


def _clip_case(config, params, mode):
  """The clips of a step's updates; each rescales some of the heads."""
  block = params['layers']['attention']
  # Whatever else went through the loop would be copied, at half of the time.
  weights = {name: block[name] for name in ('query', 'key')}
  params = {'layers': {'attention': weights}}
  clip = muon_clip.qk_clip(
    config.optim.tau, attention=transformer.attention_weights, mode=mode
  )
  state = clip.init(params)
  num_updates = config.train.num_epochs * config.train.num_minibatches
  shape = num_updates, *state.last_max.shape
  max_logits = config.optim.tau * np.random.default_rng(0).uniform(
    0.5, 1.5, size=shape
  ).astype(np.float32)

  def all_updates(updates, state, params, max_logits):

    def body(carry, now):
      # Each starts from what the one before gave, or XLA would do one only.
      return clip.update(*carry, params, max_logits=now), None

    return jax.lax.scan(body, (updates, state), max_logits)[0]

  updates = jax.tree.map(lambda x: _LEARNING_RATE * x, params)
  arguments = updates, state, params, jnp.asarray(max_logits)
  program = timing.compiled(all_updates, *arguments)
  call = functools.partial(program.call, *arguments)
  return timing.Case(_CLIP, f'qk_clip {mode}', timing.wall_clock(call), program)


SUITE = timing.Suite(
  measure,
  variants,
  shapes=('12x512x512', '12x1024x4096'),
  rounds=7,
  has_torch=True,
)
