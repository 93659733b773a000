"""A whole train step and its halves, and other projects' steps beside it.

A group for each workload times the compiled step that a run makes, with the
sampler's log-probabilities and with recomputed ones, and its halves as programs
of their own. On the CPU the step runs once more in a process of its own, which
tells the most memory it has had; other projects' steps run so too, see `peers`.
The first two steps of all are not timed.

GFLOP/s and the fraction of the measured matmul rate count what one forward and
backward pass and one rollout need, whatever is computed again.
"""

from collections.abc import Iterator
import contextlib
import functools
import sys

import jax.numpy as jnp

from experiments.bench import limits
from experiments.bench import ours
from experiments.bench import peers
from experiments.bench import timing
from experiments.bench import workloads
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import learner
from hmpo_jax.training import policy

_OURS, _RECOMPUTE = 'hmpo_jax', 'hmpo_jax, recompute'
_PROCESS = 'hmpo_jax, own process'
_STEP, _ROLLOUT, _LEARNING = 'step', 'rollout', 'learning'
_WARMUPS = 2


def measure(options: timing.Options) -> list[timing.Row]:
  """Times whole steps on workloads; ours always."""
  rows = []
  for workload in limits.fitting(options.shapes):
    with contextlib.ExitStack() as stack:
      cases = [
        *_our_cases(workload, options),
        *_process_cases(workload, options, stack),
      ]
      rows += options.timed(
        workload.name, cases, fill_caches=False, warmups=_WARMUPS
      )
  return rows


def variants() -> tuple[str, ...]:
  """Names of all that can be chosen."""
  return _OURS, _RECOMPUTE, _PROCESS, *peers.PEERS


def _our_cases(workload, options):
  """Steps and halves that are programs of this process."""
  rollout = limits.rollout_flops(workload)
  learning = limits.learning_flops(workload)
  case = functools.partial(_case, workload, options.limits)
  with ours.configured(workload) as config:
    yield case(_OURS, _STEP, ours.stepper(config), rollout + learning)
    sampling, updates = _halves(config)
    yield case(_OURS, _ROLLOUT, sampling, rollout)
    yield case(_OURS, _LEARNING, updates, learning)
  if options.wants(_RECOMPUTE):
    with ours.configured(workload, rollout__old_logprobs='recompute') as config:
      yield case(_RECOMPUTE, _STEP, ours.stepper(config), rollout + learning)


def _halves(config):
  """(program, call) of sampling, and of all updates on one rollout."""
  static, hparams, state = ours.start(config)
  collect = timing.compiled(
    functools.partial(learner.collect, static), state, hparams
  )
  sampled = collect.call(state, hparams)
  scores = task_lib.score_rollout(policy.make_task(static), sampled)
  arguments = state, hparams, sampled, scores, jnp.asarray(False)
  learn = timing.compiled(functools.partial(learner.learn, static), *arguments)
  return (
    (collect, functools.partial(collect.call, state, hparams)),
    (learn, functools.partial(learn.call, *arguments)),
  )


def _case(workload, measured, variant, mode, compiled, flops):
  program, call = compiled
  limit_s = None
  if measured:
    limit_s = flops / measured.matmul_gflops_per_s / 1e9
  return timing.Case(
    variant,
    mode,
    timing.wall_clock(call),
    program,
    flops=flops,
    tokens=_tokens(workload),
    limit_s=limit_s,
  )


def _process_cases(
  workload, options, stack: contextlib.ExitStack
) -> Iterator[timing.Case]:
  """Steps in processes that last as long as the stack."""
  wanted = dict(options.peers or {})
  if options.wants(_PROCESS):
    wanted = {peers.OWN: sys.executable} | wanted
  if not limits.is_cpu():
    if wanted:
      timing.tell(
        f'left out, as they run on the CPU alone: {", ".join(wanted)}'
      )
    return
  for peer, python in wanted.items():
    worker = peers.worker(peer, python, workload)
    try:
      step = stack.enter_context(worker)
    except OSError as error:
      timing.tell(f'{peer} is left out ({error})')
      continue
    yield _process_case(peer, step, _tokens(workload))


def _process_case(peer, step, tokens):
  last: dict[str, float] = {}

  def seconds(repeats):
    of_calls = []
    for _ in range(repeats):
      last.update(step())
      of_calls.append(last['seconds'])
    return sum(of_calls) / repeats

  is_other = peer != peers.OWN
  parts = lambda: {_ROLLOUT: last['rollout_s'], _LEARNING: last['rest_s']}
  return timing.Case(
    peer if is_other else _PROCESS,
    _STEP,
    seconds,
    tokens=tokens,
    is_here=False,
    parts=parts if is_other else None,
    peak_mb=lambda: last['peak_mb'],
    peer=peer if is_other else None,
  )


def _tokens(workload):
  return workload.batch * workload.response_len


SUITE = timing.Suite(
  measure,
  variants,
  shapes=('W-small', 'W-long', workloads.LARGE.name),
  rounds=5,
  has_peers=True,
  has_limits=True,
  named=workloads.named,
)
