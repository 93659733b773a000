"""The supervised start: a policy that gets a part of the answers right.

Reinforcement learning then improves it, as it does a language model.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax import policy
from hmpo_jax.model import transformer
from hmpo_jax.tasks import task as task_lib


def train(static, num_steps: jax.Array, learning_rate: jax.Array,
          key: jax.Array) -> base.Params:
  """Parameters after supervised steps on right answers; the key is consumed.

  Adam, its learning rate falling linearly to 0.

  Args:
    static: hashable part of the configuration.
    num_steps: [] int32, 0 gives the fresh initialisation.
    learning_rate: [] of the first step.
    key: [] typed.
  """
  init_key, data_key = jax.random.split(key)
  params = transformer.init(policy.make_model(static), init_key)
  tx = lambda i: optax.adam(learning_rate * (1 - i / num_steps), b2=0.95)
  loss = functools.partial(_supervised_loss, static)

  def body(i, carry):
    params, opt_state = carry
    grads = jax.grad(loss)(params, jax.random.fold_in(data_key, i))
    updates, opt_state = tx(i).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  start = (params, tx(0).init(params))
  return jax.lax.fori_loop(0, num_steps, body, start)[0]


def _supervised_loss(static, params, key):
  """Mean negative log-probability of the answers' tokens, nats."""
  task = policy.make_task(static)
  prompts = jax.vmap(functools.partial(task_lib.draw_training, task))(
      jax.random.split(key, static.warm_start.batch_size))
  answers = jax.vmap(task.answer)(prompts)
  mask = answers != task.pad
  found = policy.forward(static, params, jnp.concatenate([prompts, answers], 1),
                         jnp.concatenate([prompts != task.pad, mask], 1), mask,
                         1.)
  return -jnp.sum(jnp.where(mask, found.logprobs, 0)) / jnp.sum(mask)
