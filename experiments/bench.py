"""How long parts of the project take, against the simplest form of each.

  python experiments/bench.py --suite=kernels

writes kernels.csv and kernels.json to results/bench and prints the table. About
3 minutes on two cores.

All variants take turns in rounds, each in a random order, so that whatever else
the machine does hits them alike. Times are medians over rounds, a ratio is the
median of the ratios within rounds, and a spread the interquartile range. Times
hold for a machine that does nothing else: see the load average beside them.

`kernels` times value and gradient of each loss under jit, alone (what is unused
is not computed) and with its metrics, against GSPO without guard and metrics.
It also gives the loss of all updates of a step, for each order of the mean, as
a share of the default policy's train step.
"""

import csv
import functools
import json
import os
import pathlib
import re
import time
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console
from rich import table as rich_table

from hmpo_jax import command_line
from hmpo_jax import config as config_lib
from hmpo_jax import programs as programs_lib
from hmpo_jax.kernels import losses

_SUITE = flags.DEFINE_enum('suite', 'kernels', ['kernels'], 'What to time.')
_OUT = flags.DEFINE_string('out', 'results/bench', 'Folder of the results.')
_ROUNDS = flags.DEFINE_integer('rounds', 25, 'Rounds.', lower_bound=2)
_SHAPES = flags.DEFINE_list('shapes', ['64x1024', '256x4096'],
                            'Batches, as BxT.')
_VARIANTS = flags.DEFINE_string('variants', '.*',
                                'Regular expression of those to time.')

_BASELINE = 'plain GSPO'
_MODES = ('loss', 'loss and metrics')
_EPS = 0.2  # both clip ranges
_SIGMA = 0.1  # nats, scatter of the log-ratios: some of the rows are clipped
# Elements from which on a call is long enough to be timed by itself; of smaller
# batches up to 16 calls are timed together.
_LONG = 2**20


class Row(NamedTuple):
  """One variant at one shape; a time is of one call."""
  shape: str
  variant: str
  mode: str  # what the program returns
  ms: float  # median over rounds
  ms_spread: float  # interquartile range
  ratio: float  # to the baseline of the shape, median over rounds
  ratio_spread: float
  temporary_mb: float | None  # of the program, beside inputs and outputs
  output_mb: float | None


class Case(NamedTuple):
  """What is timed: a call without arguments."""
  variant: str
  mode: str
  run: Any
  memory: Any = None  # of jax's memory_analysis()


def main(_) -> None:
  """Runs a suite, writes its files and prints its table."""
  try:
    shapes = [_parse_shape(text) for text in _SHAPES.value]
    _check_flags(shapes)
  except config_lib.ConfigError as error:
    command_line.refuse(error)
  run(_SUITE.value, shapes, _ROUNDS.value, _VARIANTS.value,
      pathlib.Path(_OUT.value), config_lib.default_config())


def run(suite: str, shapes: list[tuple[int, int]], rounds: int, variants: str,
        out: pathlib.Path, config) -> list[Row]:
  """Times a suite and writes its results.

  Args:
    suite: name in _SUITES.
    shapes: (B, T) of each batch.
    rounds: how often each variant is timed, after a warm-up.
    variants: regular expression of those to time; a baseline always is.
    out: folder, made if missing.
    config: of the train step.
  """
  about: dict = {
      'suite': suite,
      'jax': jax.__version__,
      'device': jax.devices()[0].device_kind,
      'cores': os.cpu_count(),
      'rounds': rounds,
      'load_before': os.getloadavg(),
  }
  rows = _SUITES[suite](shapes, rounds, variants, config)
  about['load_after'] = os.getloadavg()
  _write(out, about, rows)
  _print(about, rows)
  return rows


def _kernels(shapes, rounds, variants, config):
  chosen = {
      name: loss
      for name, loss in loss_variants().items()
      if name == _BASELINE or re.fullmatch(variants, name)
  }
  rows = []
  for shape in shapes:
    repeats = min(16, max(1, _LONG // (shape[0] * shape[1])))
    cases = _loss_cases(chosen, _arguments(*shape))
    rows += _timed(f'{shape[0]}x{shape[1]}', cases, rounds, repeats)
  return rows + _step_rows(chosen, config, rounds)


def loss_variants() -> dict:
  """Name -> loss(logprobs, *rest, p) and its p; None if it has none."""
  clip: dict[str, Any] = {'clip_eps_low': _EPS, 'clip_eps_high': _EPS}
  mean = lambda **options: functools.partial(losses.power_mean_loss, **clip, **
                                             options)
  plain = lambda loss, **options: (lambda *batch, p: loss(*batch, **options),
                                   None)
  sequence = mean()
  return {
      _BASELINE: (_plain, None),
      'p = 1': (sequence, 1.),
      'p = 0': (sequence, 0.),
      'p = -1': (sequence, -1.),
      'p = -0.5': (sequence, -0.5),
      'p = -1, gradient in p': (sequence, -1.),
      'p = 0, p_grad = -1': (mean(p_grad=jnp.float32(-1)), 0.),
      'p = -1, p_clip = 0': (mean(p_clip=jnp.float32(0)), -1.),
      'p = -1, center geometric': (mean(clip_center='geometric'), -1.),
      'p = -1, center unbiased': (mean(clip_center='unbiased'), -1.),
      'p = -1, clip token': (mean(clip='token'), -1.),
      'p = -1, clip token_log': (mean(clip='token_log'), -1.),
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
      jnp.asarray(x) for x in (np.float32(logprobs), np.float32(old_logprobs),
                               np.float32(rng.normal(size=num_rows)),
                               np.arange(num_tokens) < length[:, None])
  ]


def _loss_cases(variants, arguments):
  """The cases of all losses, one program for each that differs in code."""
  cases, programs = [], {}
  for variant, (loss, order) in variants.items():
    p = None if order is None else jnp.float32(order)
    for mode in _MODES[:1] if variant == _BASELINE else _MODES:
      key = loss, mode, 'gradient in p' in variant
      if key not in programs:
        program = jax.jit(_value_and_gradient(*key))
        memory = program.lower(p, *arguments).compile().memory_analysis()
        programs[key] = program, memory
      program, memory = programs[key]
      call = functools.partial(program, p, *arguments)
      cases.append(Case(variant, mode, call, memory))
  return cases


def _value_and_gradient(loss, mode, has_slope):
  """f(p, *batch): value and gradient, and the metrics in one of the modes."""

  def of(logprobs, p, *rest):
    value, metrics = loss(logprobs, *rest, p=p)
    return value, metrics if mode == _MODES[1] else {}

  slope = jax.value_and_grad(of, (0, 1) if has_slope else 0, has_aux=True)
  return lambda p, logprobs, *rest: slope(logprobs, p, *rest)


def _step_rows(variants, config, rounds):
  """Train step, and the loss of all its updates; the step is the baseline."""
  programs = programs_lib.Programs(config)
  state = programs.first_state(programs.warm_params())
  size = config.rollout.num_prompts * config.rollout.group_size
  num_updates = config.train.num_epochs * config.train.num_minibatches
  shape = size // config.train.num_minibatches, programs.task.response_len
  arguments = _arguments(*shape)

  def step():
    nonlocal state
    state, metrics = programs.step(state, measure=False)
    return metrics

  # Variants that differ in p alone share one.
  program = functools.cache(
      lambda loss: jax.jit(_all_updates(loss, num_updates)))
  cases = [Case('train step', _MODES[1], step)]
  for variant, (loss, order) in variants.items():
    if order is not None:
      call = functools.partial(program(loss), jnp.float32(order), *arguments)
      cases.append(Case(variant, _MODES[1], call))
  label = f'step of {num_updates} updates of {shape[0]}x{shape[1]}'
  return _timed(label, cases, rounds, repeats=1)


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


def _timed(shape, cases, rounds, repeats):
  """Rows of cases that take turns; the first is what the others are held to."""
  for case in cases:
    jax.block_until_ready(case.run())
  seconds = np.zeros((rounds, len(cases)))
  rng = np.random.default_rng(0)
  for of_round in seconds:
    for i in rng.permutation(len(cases)):
      of_round[i] = _seconds(cases[i].run, repeats)
  ratios = seconds / seconds[:, :1]
  return [
      _row(shape, case, 1e3 * seconds[:, i], ratios[:, i])
      for i, case in enumerate(cases)
  ]


def _row(shape, case, ms, ratio):
  low, middle, high = np.percentile([ms, ratio], [25, 50, 75], axis=1)
  spread = high - low
  return Row(shape, case.variant, case.mode, round(middle[0], 4),
             round(spread[0], 4), round(middle[1], 5), round(spread[1], 5),
             _megabytes(case.memory, 'temp'), _megabytes(case.memory, 'output'))


def _seconds(call, repeats):
  """Wall-clock time of one call, after one that fills the caches."""
  jax.block_until_ready(call())
  start = time.perf_counter()
  for _ in range(repeats):
    jax.block_until_ready(call())
  return (time.perf_counter() - start) / repeats


def _megabytes(memory, kind):
  """A size of a program; None where the backend tells none."""
  size = getattr(memory, f'{kind}_size_in_bytes', None)
  return None if size is None else round(size / 1e6, 3)


def _write(out, about, rows):
  out.mkdir(parents=True, exist_ok=True)
  records = [row._asdict() for row in rows]
  text = json.dumps(about | {'rows': records}, indent=2)
  (out / f'{about["suite"]}.json').write_text(f'{text}\n', encoding='utf-8')
  with open(
      out / f'{about["suite"]}.csv', 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, fieldnames=Row._fields)
    writer.writeheader()
    writer.writerows(records)


def _print(about, rows):
  """One table for each shape."""
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    console.width = 120
  console.print(' '.join(f'{key}={value}' for key, value in about.items()))
  for shape in dict.fromkeys(row.shape for row in rows):
    table = rich_table.Table(title=shape)
    for column in ('variant', 'returns', 'ms', 'ratio', 'temporary MB',
                   'output MB'):
      table.add_column(column)
    for row in rows:
      if row.shape == shape:
        table.add_row(
            row.variant, row.mode, f'{row.ms:.3f} ± {row.ms_spread:.3f}',
            f'{row.ratio:.3f} ± {row.ratio_spread:.3f}',
            *('' if size is None else f'{size:.2f}'
              for size in (row.temporary_mb, row.output_mb)))
    console.print(table)


def _check_flags(shapes):
  """Before minutes of timing, not after."""
  if not shapes:
    raise config_lib.ConfigError('--shapes=: must be as 64x1024,256x4096')
  pattern = _VARIANTS.value
  try:
    found = any(re.fullmatch(pattern, name) for name in loss_variants())
  except re.error as error:
    raise config_lib.ConfigError(f'--variants={pattern}: {error}') from error
  if not found:
    raise config_lib.ConfigError(f'--variants={pattern}: must match one of '
                                 f'{", ".join(loss_variants())}')
  try:
    pathlib.Path(_OUT.value).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise config_lib.ConfigError(f'--out={_OUT.value}: {error}') from error


def _parse_shape(text):
  """(B, T) of a text as 64x1024."""
  sizes = text.split('x')
  if len(sizes) != 2 or not all(size.isdecimal() and int(size) > 0
                                for size in sizes):
    raise config_lib.ConfigError(f'--shapes={text}: must be as 64x1024')
  return int(sizes[0]), int(sizes[1])


_SUITES = {'kernels': _kernels}

if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
