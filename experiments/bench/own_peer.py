"""Our own train step in a process like that of a peer; see `peer_loop`.

Sampling and update are one program, so that no time of the sampling is told.
"""

import os
from typing import Any

import jax

from experiments.bench import ours
from experiments.bench import workloads


def cores() -> list[int]:
  """Numbers of the cores that this process may use."""
  return sorted(os.sched_getaffinity(0))


def describe() -> dict:
  """Versions; the other packages' are those of the benchmark itself."""
  return {'jax': jax.__version__}


def train(workload: Any, steps: Any) -> None:
  """Trains until there are no more lines.

  Args:
    workload: fields of `Workload` and `Recipe`, and 'core', the one that this
      process is to use, or None.
    steps: `peer_loop.Steps`.
  """
  if workload.core is not None:
    # JAX counts the cores when it first computes.
    os.sched_setaffinity(0, {workload.core})
  names = workloads.Workload._fields
  wanted = workloads.Workload(*(getattr(workload, name) for name in names))
  with ours.configured(wanted) as config:
    num_params = sum(
      x.size for x in jax.tree.leaves(ours.start(config).state.params)
    )
    _, step = ours.stepper(config)
    for _ in steps.serve(num_params):
      metrics = jax.device_get(step())
      # The mean is the length of each if it is the largest there can be.
      length = float(metrics['rollout/length_mean'])
      steps.sampled([(wanted.prompt_len, length)] * wanted.batch)
