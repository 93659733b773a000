"""Many runs in one program, against one run.

A group for each number of runs times a step of all of them: one after the other
(`map`), side by side (`vmap`), spread over devices (`spread`: one after the
other on each; on the CPU a device is a core), and on the CPU as many processes
as cores, each with one core and its share of the runs (`processes`). The runs
differ in their seeds and in the order of the mean. The baseline is the step of
one run, as a run makes it.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import functools
import sys

import jax
import jax.numpy as jnp

from experiments.bench import limits
from experiments.bench import ours
from experiments.bench import own_peer
from experiments.bench import peers
from experiments.bench import timing
from experiments.bench import workloads
from hmpo_jax.model import transformer
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import run_axis

_ONE, _PROCESSES = 'one run', 'processes'
_SPREAD = 'spread'
_FORMS = ('map', 'vmap', _SPREAD)
_COUNTS = 1, 8, 64
_IN_PROCESSES = 8
_WARMUPS = 2


def measure(options: timing.Options) -> list[timing.Row]:
  """Times many runs of workloads; one run always."""
  return [
    row
    for workload in limits.fitting(options.shapes)
    for count in _COUNTS
    for row in _rows(workload, count, options)
  ]


def variants() -> tuple[str, ...]:
  """Names of all that can be chosen."""
  return _ONE, *_FORMS, _PROCESSES


def stacked(start: ours.Start, count: int) -> tuple:
  """States and hyperparameters of runs, each leaf with a leading axis.

  The orders of their means go from -1 to 1; one run has that of the start.
  """
  static, hparams, state = start
  orders = (
    jnp.linspace(-1, 1, count) if count > 1 else hparams.exponent.start[None]
  )
  many = jax.tree.map(lambda x: jnp.repeat(x[None], count, axis=0), hparams)
  many = many._replace(exponent=many.exponent._replace(start=orders))
  first = lambda key: transformer.init(policy.make_model(static), key)
  keys = jax.random.split(state.key, (2, count))
  states = jax.jit(
    jax.vmap(
      lambda hparams, init_key, run_key: learner.init(
        static, hparams, first(init_key), run_key
      )
    )
  )(many, *keys)
  return states, many


def _rows(workload, count, options):
  with contextlib.ExitStack() as stack:
    config = stack.enter_context(ours.configured(workload))
    program, step = ours.stepper(config)
    cases = [_case(_ONE, workload, 1, timing.wall_clock(step), program)]
    cases += [
      _case(
        form, workload, count, *_in_one_program(ours.start(config), form, count)
      )
      for form in _FORMS
      if options.wants(form) and not (form == _SPREAD and count == 1)
    ]
    if count == _IN_PROCESSES and options.wants(_PROCESSES):
      cases += _in_processes(workload, stack)
    label = f'{workload.name}, {count} run{"s" if count > 1 else ""}'
    return options.timed(label, cases, fill_caches=False, warmups=_WARMUPS)


def _in_one_program(start, form, count):
  """Seconds of a step of all runs, and its program."""
  states, hparams = stacked(start, count)
  measure_means = jnp.asarray(False)
  of_run = functools.partial(learner.train_step, start.static)
  if form == _SPREAD:
    devices = jax.devices()
    states, hparams = (
      run_axis.place(tree, devices) for tree in (states, hparams)
    )
    step = run_axis.over_runs(of_run, devices=devices)
  else:
    step = run_axis.over_runs(of_run, form)
  program = timing.compiled(step, states, hparams, measure_means, donate=(0,))

  def call():
    nonlocal states
    states, metrics = program.call(states, hparams, measure_means)
    return metrics

  return timing.wall_clock(call), program


def _in_processes(workload, stack) -> Iterator[timing.Case]:
  """Runs in processes with one core each, if their number divides."""
  cores = own_peer.cores()
  if not limits.is_cpu() or _IN_PROCESSES % len(cores):
    timing.tell(
      f"{_PROCESSES} are left out: {_IN_PROCESSES} runs don't divide "
      f'into {len(cores)} cores of the CPU'
    )
    return
  workers = [
    stack.enter_context(peers.worker(peers.OWN, sys.executable, workload, core))
    for core in cores
  ]
  pool = stack.enter_context(futures.ThreadPoolExecutor(len(workers)))
  share = _IN_PROCESSES // len(workers)

  def call():
    several = lambda worker: [worker() for _ in range(share)]
    list(pool.map(several, workers))

  yield _case(
    _PROCESSES, workload, _IN_PROCESSES, timing.wall_clock(call), None
  )._replace(is_here=False)


def _case(variant, workload, count, seconds, program):
  tokens = count * workload.batch * workload.response_len
  flops = limits.rollout_flops(workload) + limits.learning_flops(workload)
  return timing.Case(
    variant,
    f'{count} run{"s" if count > 1 else ""}',
    seconds,
    program,
    flops=count * flops,
    tokens=tokens,
  )


SUITE = timing.Suite(
  measure, variants, shapes=('W-runs',), rounds=5, named=workloads.named
)
