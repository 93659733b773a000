"""The smallest run that has every part, for tests of the learner and above."""

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.model import sampling
from hmpo_jax.model import transformer
from hmpo_jax.training import learner
from hmpo_jax.training import policy


def config(**overrides):
  """Defaults at their smallest; overrides as section__key=value."""
  result = config_lib.default_config()
  sizes = {
    'task__num_digits': 5,
    'model__num_layers': 2,
    'model__embed_dim': 16,
    'model__num_heads': 4,
    'model__num_kv_heads': 2,
    'model__head_dim': 4,
    'model__mlp_dim': 16,
    'model__tie_embeddings': False,
    'rollout__num_prompts': 4,
    'rollout__group_size': 8,
    'train__num_epochs': 2,
    'train__num_minibatches': 2,
    'warm_start__num_steps': 0,
    # Muon takes seconds to compile; a few steps must move the ratios.
    'optim__name': 'adamw',
    'optim__qk_clip': 'off',
    'optim__learning_rate': 0.01,
    'eval__num_prompts': 16,
    # Comparing gradients is a third of what a step compiles.
    'mechanism__every': 0,
  }
  for name, value in (sizes | overrides).items():
    *sections, key = name.split('__')
    node = result
    for section in sections:
      node = node[section]
    node[key] = value
  config_lib.validate(result)
  return result


_init_params = jax.jit(transformer.init, static_argnums=0)
_init_state = jax.jit(learner.init, static_argnums=0)


def start(run_config, seed=0):
  """Static part, hyperparameters and first state of a configuration."""
  static = traced.static(run_config)
  hparams = traced.hparams(run_config)
  init_key, run_key = jax.random.split(jax.random.key(seed))
  params = _init_params(policy.make_model(static), init_key)
  # Fresh logits are nearly flat; spread them, so that means can differ.
  params['head'] *= 10
  return static, hparams, _init_state(static, hparams, params, run_key)


step = jax.jit(learner.train_step, static_argnums=0)


def steps(run_config, num=1, seed=0):
  """States before and after each of `num` steps, and their metrics."""
  static, hparams, state = start(run_config, seed)
  states, records = [state], []
  for _ in range(num):
    state, metrics = step(static, state, hparams, jnp.asarray(False))
    states.append(state)
    records.append(jax.device_get(metrics))
  return states, records


def batch(static, state, hparams, seed=0):
  """A rollout of fresh prompts with random advantages, as one Batch."""
  task = policy.make_task(static)
  keys = jax.random.split(jax.random.key(seed), 3)
  prompts = jax.vmap(task.draw)(jax.random.split(keys[0], 4))
  sampled = sampling.sample(
    policy.make_model(static),
    state.params,
    prompts,
    jax.random.split(keys[1], (4, 8)),
    response_len=task.response_len,
    stop=task.stop,
    pad=task.pad,
    temperature=hparams.temperature,
  )
  old_logprobs, *_ = policy.forward(
    static,
    state.params,
    sampled.tokens,
    sampled.valid,
    sampled.mask,
    hparams.temperature,
  )
  return base.Batch(
    sampled.tokens,
    sampled.valid,
    sampled.mask,
    old_logprobs,
    jnp.zeros_like(old_logprobs),
    jax.random.normal(keys[2], sampled.mask.shape[:1]),
    jnp.repeat(jnp.arange(4), 8),
    jnp.bool_(False),
  )
