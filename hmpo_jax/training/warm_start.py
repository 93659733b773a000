"""The supervised start: a policy that gets a part of the answers right.

Reinforcement learning then improves it, as it does a language model.
run/first_params.py keeps its parameters in a cache and hands them to runs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.model import sampling
from hmpo_jax.model import transformer
from hmpo_jax.optim import muon
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import policy

_STEPS_BETWEEN_SAMPLES = 5  # of a warm start that stops at a sampled share


class _Carry(NamedTuple):
  """What a supervised step takes and leaves."""

  step: jax.Array  # [] int32 finished
  params: base.Params
  opt_state: optax.OptState
  share: jax.Array  # [] of right tokens, when last sampled; 0 before


def train(
  static,
  num_steps: jax.Array,
  learning_rate: jax.Array,
  key: jax.Array,
  stop_reward: jax.Array | float = 1.0,
  temperature: jax.Array | float = 1.0,
  muon_learning_rate: jax.Array | float = 0.0,
) -> base.Params:
  """Parameters after supervised steps on right answers; the key is consumed.

  Adam, or Muon with Adam on what is no hidden matrix, the learning rates
  falling linearly to 0. Muon is `muon.muon` as it is by default, whatever
  optimizer follows, so that all arms of a comparison share a warm start. Where
  the configuration can stop, responses to a batch of training prompts are
  sampled every 5 steps, and the first batch whose share of right tokens reaches
  `stop_reward` is the last.

  Args:
    static: hashable part of the configuration.
    num_steps: [] int32, at most; 0 gives the fresh initialisation.
    learning_rate: [] Adam's of the first step.
    key: [] typed.
    stop_reward: [] in (0, 1]; ignored where the configuration can't stop.
    temperature: [] of the sampler.
    muon_learning_rate: [] of the first step on hidden matrices; ignored where
      the configuration takes Adam for all.
  """
  init_key, data_key = jax.random.split(key)
  params = transformer.init(policy.make_model(static), init_key)
  tx = lambda i: _optimizer(
    static,
    learning_rate * (1 - i / num_steps),
    muon_learning_rate * (1 - i / num_steps),
  )
  loss = functools.partial(_supervised_loss, static)

  def learn(i, carry):
    params, opt_state = carry
    grads = jax.grad(loss)(params, jax.random.fold_in(data_key, i))
    updates, opt_state = tx(i).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  start = (params, tx(0).init(params))
  if not static.warm_start.can_stop:
    return jax.lax.fori_loop(0, num_steps, learn, start)[0]

  def body(carry):
    params, opt_state = learn(carry.step, carry[1:3])
    step = carry.step + 1
    sample = lambda: _sampled_share(
      static, params, temperature, jax.random.fold_in(init_key, step)
    )
    is_due = step % _STEPS_BETWEEN_SAMPLES == 0
    share = jax.lax.cond(is_due, sample, lambda: carry.share)
    return _Carry(step, params, opt_state, share)

  is_running = lambda carry: (
    (carry.step < num_steps) & (carry.share < stop_reward)
  )
  first = _Carry(jnp.int32(0), *start, jnp.float32(0))
  return jax.lax.while_loop(is_running, body, first).params


def _optimizer(static, learning_rate, muon_learning_rate):
  if static.warm_start.optimizer == 'adam':
    return optax.adam(learning_rate, b2=0.95)
  return muon.muon(
    muon_learning_rate,
    dimension_numbers=functools.partial(
      transformer.muon_dimension_numbers, heads='joint'
    ),
    adam_learning_rate=learning_rate,
  )


def _sampled_share(static, params, temperature, key):
  """[] share of right tokens in responses to a batch of training prompts."""
  task = policy.make_task(static)
  prompt_key, sample_key = jax.random.split(key)
  size = static.warm_start.batch_size
  prompts = jax.vmap(functools.partial(task_lib.draw_training, task))(
    jax.random.split(prompt_key, size)
  )
  sampled = sampling.sample(
    policy.make_model(static),
    params,
    prompts,
    jax.random.split(sample_key, (size, 1)),
    response_len=task.response_len,
    stop=task.stop,
    pad=task.pad,
    temperature=temperature,
  )
  return jnp.mean(task_lib.score_rollout(task, sampled).reward)


def _supervised_loss(static, params, key):
  """Mean negative log-probability of the answers' tokens, nats."""
  task = policy.make_task(static)
  prompts = jax.vmap(functools.partial(task_lib.draw_training, task))(
    jax.random.split(key, static.warm_start.batch_size)
  )
  answers = jax.vmap(task.answer)(prompts)
  mask = answers != task.pad
  found = policy.forward(
    static,
    params,
    jnp.concatenate([prompts, answers], 1),
    jnp.concatenate([prompts != task.pad, mask], 1),
    mask,
    1.0,
  )
  return -jnp.sum(jnp.where(mask, found.logprobs, 0)) / jnp.sum(mask)
