"""Many runs in one program, over a leading run axis.

Runs of one static configuration differ in what is traced: seed, order of the
mean, clip range, learning rate. Their states and hyperparameters, stacked leaf
by leaf, go through one compiled program, whose size doesn't depend on how many
they are.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
import multiprocessing
from typing import Any

import jax
import jax.numpy as jnp

AXIS = 'runs'  # of the mesh that runs are spread over
CHOICES = ('auto', 'map', 'vmap')


def stack(runs: Sequence[Any]) -> Any:
  """Trees of equal structure as one, whose leaves have a leading run axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def take(runs: Any, index: int) -> Any:
  """The tree of one run."""
  return jax.tree.map(lambda leaf: leaf[index], runs)


def over_runs(
  function: Callable, how: str = 'auto', devices: Sequence[jax.Device] = ()
) -> Callable:
  """A function of one run as a function of many; not jitted.

  'map' takes the runs one by one: on CPU one run keeps the cores busy, and many
  at once only fill its caches; a run has the bits that it has alone. 'vmap'
  takes them at once, as an accelerator wants it: loops end when those of all
  runs have ended, and sums may be made in another order.

  Args:
    function: of a run's trees and of what all runs share, say
      partial(learner.train_step, static): (state, hparams, measure). The first
      two arguments have the run axis, the others don't.
    how: map, vmap, or auto: by the backend.
    devices: spreads the runs over so many of these as divide their number; each
      has its own in memory. On CPU see `one_device_per_core`.

  Returns:
    (states, hparams, *shared) -> results, all with the run axis.

  Raises:
    ValueError: unknown `how`.
  """
  if how not in CHOICES:
    raise ValueError(f'{how=}: must be one of {", ".join(CHOICES)}')

  def of_runs(states, hparams, *shared):
    platform = devices[0].platform if devices else jax.default_backend()
    if how == 'vmap' or how == 'auto' and platform != 'cpu':
      axes = (0, 0, *[None] * len(shared))
      return jax.vmap(function, axes)(states, hparams, *shared)
    one = lambda run: function(*run, *shared)
    return jax.lax.map(one, (states, hparams))

  def spread(states, hparams, *shared):
    mesh = _mesh(_num_runs(states), devices)
    if mesh.size == 1:
      return of_runs(states, hparams, *shared)
    each, all_ = jax.P(AXIS), jax.P()
    return jax.shard_map(
      of_runs,
      mesh=mesh,
      in_specs=(each, each, *[all_] * len(shared)),
      out_specs=each,
      check_vma=False,
    )(states, hparams, *shared)

  return spread if devices else of_runs


def place(runs: Any, devices: Sequence[jax.Device]) -> Any:
  """Stacked trees where `over_runs` with these devices wants them."""
  mesh = _mesh(_num_runs(runs), devices)
  return jax.device_put(runs, jax.NamedSharding(mesh, jax.P(AXIS)))


def one_device_per_core() -> None:
  """Makes each core of the CPU a device of its own, for `devices` above.

  A run by itself doesn't fill two cores; two runs beside each other do. It must
  come before JAX counts its devices.

  Raises:
    RuntimeError: JAX has counted them already.
  """
  jax.config.update('jax_num_cpu_devices', multiprocessing.cpu_count())


def _num_runs(runs):
  return jax.tree.leaves(runs)[0].shape[0]


@functools.cache
def _mesh_of(devices):
  return jax.make_mesh(
    (len(devices),),
    (AXIS,),
    devices=devices,
    axis_types=(jax.sharding.AxisType.Auto,),
  )


def _mesh(num_runs, devices):
  return _mesh_of(tuple(devices[: math.gcd(num_runs, len(devices))]))
