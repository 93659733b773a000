"""Where the parameters of a run come from: its warm start, kept in a cache."""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.optim import qk_weights
from hmpo_jax.run import checkpoint
from hmpo_jax.run import environment
from hmpo_jax.run import folder as run_folder
from hmpo_jax.training import programs as programs_lib


def of(
  config, programs: programs_lib.Programs, workdir: pathlib.Path, note
) -> base.Params:
  """Parameters of the warm start, from the cache where it holds them.

  Query weights are then multiplied by warm_start.query_scale, which all share
  one cache for. What a run calls its start, also the reference of a KL, is what
  this returns: the policy that it trains, and not the one that was kept.

  Args:
    config: of the run.
    programs: of the configuration.
    workdir: run folder, where the cache lies if the configuration names none.
    note: takes a line for the user.
  """
  warm, static = config.warm_start, traced.of_warm_start(programs.static)
  folder = run_folder.placed(warm.folder or workdir / 'warm_start')
  identity = {
    'model': static.model.to_dict(),
    # The content of a file decides, not its place.
    'task': dict(static.task.to_dict(), prompts=''),
    'warm_start': [
      warm.num_steps,
      warm.batch_size,
      warm.learning_rate,
      warm.optimizer,
      warm.muon_learning_rate,
    ],
    # Sampled at the run's temperature.
    'stop': [warm.stop_reward, config.rollout.temperature]
    if warm.stop_reward
    else [],
    'seed': config.seed,
    # Of files too only those that it sees: all arms share a warm start.
    'inputs': {
      key: digest
      for key, digest in run_folder.inputs(config).items()
      if key.startswith('task.')
    },
    'versions': environment.versions(),
    'settings': environment.settings(),
    'cpu': environment.cpu(),
  }
  digest = hashlib.sha256(
    json.dumps(identity, sort_keys=True).encode()
  ).hexdigest()[:16]
  target = jax.eval_shape(programs.warm_params)
  params = checkpoint.restore_tree(folder / digest, target, note)
  if params is None:
    # What fails in the computation is no fault of the disk.
    params = jax.block_until_ready(programs.warm_params())
    checkpoint.save_tree(folder / digest, params)
  return _scaled_queries(params, warm.query_scale)


def _scaled_queries(params, scale):
  """Query kernels and biases times scale, so that attention logits are."""
  if scale == 1:
    return params
  leaves = qk_weights.by_path(params)
  for weight in transformer.attention_weights(params).query:
    leaves[weight.path] *= jnp.float32(scale)
  return jax.tree.unflatten(jax.tree.structure(params), leaves.values())
