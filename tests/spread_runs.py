"""Rollouts of four runs on two devices, and one by one; says if they are equal.

Run by runs_test.py, as devices must be counted before JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.training import learner
from hmpo_jax.training import run_axis
from tests import small


def main() -> None:
  """Prints the number of devices and what was found as JSON."""
  jax.config.update('jax_num_cpu_devices', 3)
  starts = [
    small.start(small.config(loss__p=p), seed)
    for seed, p in enumerate([-1.0, 0.0, 1.0, 2.0])
  ]
  static = starts[0][0]
  traces = []

  def step(state, hparams, gain):
    """Half a step, which compiles in a fraction of the time of a whole one."""
    traces.append(gain)
    rollout = learner.collect(static, state, hparams)
    moved = jax.tree.map(lambda x: gain * x, state.params)
    return state._replace(step=state.step + 1, params=moved), rollout

  # Of three devices two divide four runs.
  devices = jax.devices()[:2]
  states, hparams = (
    run_axis.place(run_axis.stack([start[i] for start in starts]), devices)
    for i in (2, 1)
  )
  many = jax.jit(run_axis.over_runs(step, devices=devices), donate_argnums=0)
  alone = jax.jit(step)
  gain = jnp.float32(1.5)
  before = states.params['embed'].sharding
  for _ in range(2):
    states, rollouts = many(states, hparams, gain)
  equal = []
  programs = len(traces)
  for i, (_, own_hparams, state) in enumerate(starts):
    for _ in range(2):
      state, rollout = alone(state, own_hparams, gain)
    found = run_axis.take((states.params, rollouts), i)
    equal += jax.tree.leaves(
      jax.tree.map(np.array_equal, found, (state.params, rollout))
    )
  spread = states.params['embed'].sharding
  print(
    json.dumps(
      {
        'devices': len(spread.device_set),
        'stays': spread.is_equivalent_to(before, 3),
        'equal': all(equal),
        'programs': programs,
      }
    )
  )


if __name__ == '__main__':
  main()
