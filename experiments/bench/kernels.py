"""Value and gradient of each loss, against GSPO without guard and metrics.

Each loss is timed under jit, alone (what is unused is not computed) and with
its metrics. The last group gives the loss of all updates of a step, for each
order of the mean, as a share of the default policy's train step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from hmpo_jax.kernels import losses
from hmpo_jax.training import programs as programs_lib

_BASELINE = 'plain GSPO'
_MODES = ('loss', 'loss and metrics')
_EPS = 0.2  # both clip ranges
_SIGMA = 0.1  # nats, scatter of the log-ratios: some of the rows are clipped
# Elements from which on a call is long enough to be timed by itself; of smaller
# batches up to 16 calls are timed together.
_LONG = 2**20


def measure(options: timing.Options) -> list[timing.Row]:
  """Times the losses on batches of shapes (B, T); the baseline always."""
  chosen = {
    name: loss
    for name, loss in loss_variants().items()
    if name == _BASELINE or options.wants(name)
  }
  rows = []
  for shape in options.shapes:
    repeats = min(16, max(1, _LONG // (shape[0] * shape[1])))
    cases = _loss_cases(chosen, _arguments(*shape))
    rows += options.timed(f'{shape[0]}x{shape[1]}', cases, repeats=repeats)
  return rows + _step_rows(chosen, options)


def loss_variants() -> dict:
  """Name -> loss(logprobs, *rest, p) and its p; None if it has none."""
  clip: dict[str, Any] = {'clip_eps_low': _EPS, 'clip_eps_high': _EPS}
  mean = lambda **options: functools.partial(
    losses.power_mean_loss, **clip, **options
  )
  plain = lambda loss, **options: (
    lambda *batch, p: loss(*batch, **options),
    None,
  )
  sequence = mean()
  return {
    _BASELINE: (_plain, None),
    'p = 1': (sequence, 1.0),
    'p = 0': (sequence, 0.0),
    'p = -1': (sequence, -1.0),
    'p = -0.5': (sequence, -0.5),
    'p = -1, gradient in p': (sequence, -1.0),
    'p = 0, p_grad = -1': (mean(p_grad=jnp.float32(-1)), 0.0),
    'p = -1, p_clip = 0': (mean(p_clip=jnp.float32(0)), -1.0),
    'p = -1, center geometric': (mean(clip_center='geometric'), -1.0),
    'p = -1, center unbiased': (mean(clip_center='unbiased'), -1.0),
    'p = -1, clip token': (mean(clip='token'), -1.0),
    'p = -1, clip token_log': (mean(clip='token_log'), -1.0),
    'arithmetic_harmonic': plain(losses.arithmetic_harmonic_loss, **clip),
    'gspo_token': plain(losses.gspo_token_loss, **clip),
    'grpo': plain(losses.grpo_loss, **clip),
    'cispo': plain(losses.cispo_loss, **clip),
    'sapo': plain(losses.sapo_loss),
    'reinforce': plain(losses.reinforce_loss),
  }


def _plain(logprobs, old_logprobs, advantages, mask, p):
  """GSPO as one writes it first; no guard, no metric."""
  del p
  count = jnp.maximum(jnp.sum(mask, axis=1), 1)
  log_ratio = jnp.sum((logprobs - old_logprobs) * mask, axis=1) / count
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - _EPS, 1 + _EPS)
  return -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages)), {}


def _arguments(num_rows, num_tokens):
  """A batch whose rows have from half to all of the tokens."""
  rng = np.random.default_rng(0)
  shape = num_rows, num_tokens
  length = rng.integers((num_tokens + 1) // 2, num_tokens + 1, size=num_rows)
  old_logprobs = -rng.exponential(size=shape)
  logprobs = old_logprobs + _SIGMA * rng.normal(size=shape)
  return [
    jnp.asarray(x)
    for x in (
      np.float32(logprobs),
      np.float32(old_logprobs),
      np.float32(rng.normal(size=num_rows)),
      np.arange(num_tokens) < length[:, None],
    )
  ]


def _loss_cases(variants, arguments):
  """The cases of all losses, one program for each that differs in code."""
  cases, programs = [], {}
  for variant, (loss, order) in variants.items():
    p = None if order is None else jnp.float32(order)
    for mode in _MODES[:1] if variant == _BASELINE else _MODES:
      key = loss, mode, 'gradient in p' in variant
      if key not in programs:
        programs[key] = timing.compiled(
          _value_and_gradient(*key), p, *arguments
        )
      cases.append(_case(variant, mode, programs[key], p, *arguments))
  return cases


def _case(variant, mode, program, *arguments):
  call = functools.partial(program.call, *arguments)
  return timing.Case(variant, mode, timing.wall_clock(call), program)


def _value_and_gradient(loss, mode, has_slope):
  """f(p, *batch): value and gradient, and the metrics in one of the modes."""

  def of(logprobs, p, *rest):
    value, metrics = loss(logprobs, *rest, p=p)
    return value, metrics if mode == _MODES[1] else {}

  slope = jax.value_and_grad(of, (0, 1) if has_slope else 0, has_aux=True)
  return lambda p, logprobs, *rest: slope(logprobs, p, *rest)


def _step_rows(variants, options):
  """Train step, and the loss of all its updates; the step is the baseline."""
  config = options.config
  programs = programs_lib.Programs(config)
  state = programs.first_state(programs.warm_params())
  size = config.rollout.num_prompts * config.rollout.group_size
  num_updates = config.train.num_epochs * config.train.num_minibatches
  shape = size // config.train.num_minibatches, programs.task.response_len
  arguments = _arguments(*shape)

  def step():
    nonlocal state
    state, metrics = programs.step(state, False, programs.hparams)
    return metrics

  # Variants that differ in p alone share one.
  program = functools.cache(
    lambda loss: timing.compiled(
      _all_updates(loss, num_updates), jnp.float32(0), *arguments
    )
  )
  cases = [timing.Case('train step', _MODES[1], timing.wall_clock(step))]
  for variant, (loss, order) in variants.items():
    if order is not None:
      cases.append(
        _case(variant, _MODES[1], program(loss), jnp.float32(order), *arguments)
      )
  label = f'step of {num_updates} updates of {shape[0]}x{shape[1]}'
  return options.timed(label, cases)


def _all_updates(loss, num_updates):
  """All losses of a step with gradient and metrics, one after the other."""
  once = _value_and_gradient(loss, _MODES[1], has_slope=False)

  def program(p, logprobs, *rest):

    def body(logprobs, _):
      result, gradient = once(p, logprobs, *rest)
      # Each starts from what the one before gave, or XLA would do one only.
      return logprobs - gradient, result

    logprobs, results = jax.lax.scan(body, logprobs, length=num_updates)
    # One number for all metrics: the step too hands few arrays to the host.
    return logprobs, sum(jnp.mean(x) for x in jax.tree.leaves(results))

  return program


SUITE = timing.Suite(
  measure, loss_variants, shapes=('64x1024', '256x4096'), rounds=25
)
