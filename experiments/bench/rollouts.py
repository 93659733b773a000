"""Sampling with a cache that grows by buckets, against one of full length.

A group for each workload times the first half of a step: prompts are drawn and
run, and every response is sampled to its full length. On an accelerator a row
tells which part of the copy bandwidth decoding reaches, counting what it must
read; on the CPU weights fit into caches, which a bandwidth says nothing of.
"""

import functools

from experiments.bench import limits
from experiments.bench import ours
from experiments.bench import timing
from experiments.bench import workloads
from hmpo_jax.config import traced
from hmpo_jax.training import learner

_WHOLE, _MODE = 'one bucket', 'sampling'
_BUCKETS = 16, 32, 64, 128, 256
_MOST_BUCKETS = 8  # each is compiled


def measure(options: timing.Options) -> list[timing.Row]:
  """Times sampling for workloads; one bucket always."""
  return [
    row
    for workload in limits.fitting(options.shapes)
    for row in _rows(workload, options)
  ]


def variants() -> tuple[str, ...]:
  """Names of all that can be chosen."""
  return _WHOLE, *map(_name, _BUCKETS)


def _rows(workload, options):
  length = workload.response_len
  sizes = {_WHOLE: length} | {
    _name(bucket): bucket
    for bucket in _BUCKETS
    if bucket < length <= _MOST_BUCKETS * bucket
  }
  with ours.configured(workload) as config:
    start = ours.start(config)  # one for all: it may fill half of the memory
    cases = []
    for name, bucket in sizes.items():
      if name == _WHOLE or options.wants(name):
        config.rollout.bucket = bucket
        start = start._replace(static=traced.static(config))
        cases.append(_case(workload, name, start, options.limits))
  return options.timed(workload.name, cases, fill_caches=False)


def _name(bucket):
  return f'buckets of {bucket}'


def _case(workload, name, start, measured):
  static, hparams, state = start
  program = timing.compiled(
    functools.partial(learner.collect, static), state, hparams
  )
  limit_s = None
  if measured and not limits.is_cpu():
    read = limits.rollout_bytes(workload)
    limit_s = read / measured.copy_gb_per_s / 1e9
  call = functools.partial(program.call, state, hparams)
  return timing.Case(
    name,
    _MODE,
    timing.wall_clock(call),
    program,
    flops=limits.rollout_flops(workload),
    tokens=workload.batch * workload.response_len,
    limit_s=limit_s,
  )


SUITE = timing.Suite(
  measure,
  variants,
  shapes=tuple(workloads.WORKLOADS),
  rounds=5,
  has_limits=True,
  named=workloads.named,
)
