"""The policy of a configuration: its task, its model, its log-probabilities.

`static` is `traced.static(config)`, the hashable part of a configuration.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.model import transformer
from hmpo_jax.ops import reductions
from hmpo_jax.ops import vocabulary
from hmpo_jax.tasks import digits
from hmpo_jax.tasks import prompt_file
from hmpo_jax.tasks import task as task_lib


def make_task(static) -> task_lib.Task:
  """The task of a configuration.

  Raises:
    ConfigError: its file of prompts can't be used.
  """
  task = static.task
  if task.name == 'file':
    return prompt_file.load(
      task.prompts, task.vocab_size, task.pad, task.stop, task.response_len
    )
  return digits.make(task.name, task.num_digits)


def make_judge(
  static, pays_exact: jax.Array | bool
) -> Callable[[base.Rollout], task_lib.Score]:
  """What scores a rollout, where the reward is a JAX function.

  Args:
    static: hashable part of the configuration.
    pays_exact: [] whether the reward is exact match, see `task.score`.
  """
  return functools.partial(
    task_lib.score_rollout, make_task(static), pays_exact=pays_exact
  )


def make_model(static) -> transformer.Transformer:
  """The model of a configuration, without its parameters."""
  return transformer.Transformer(
    vocab_size=make_task(static).vocab_size, **static.model
  )


# Parts of a minibatch, at least, in a pass that stands beside an update in one
# program, whose memory it shall not double.
_PARTS_BESIDE_AN_UPDATE = 8


class Forward(NamedTuple):
  """What the training forward finds of given responses."""

  logprobs: jax.Array  # [B, T] of the responses' tokens
  entropies: jax.Array  # [B, T] nats, of the choice of each token
  max_logits: jax.Array  # [N_l, H] largest visible attention logit, no gradient
  # [N_l, H] nats, mean over queries that are no padding; None if it is off.
  attention_entropy: jax.Array | None


def forward(
  static,
  params: base.Params,
  tokens: jax.Array,
  valid: jax.Array,
  mask: jax.Array,
  temperature: jax.Array | float,
) -> Forward:
  """The training forward: log-probabilities of responses that are given.

  Args:
    static: hashable part of the configuration.
    params: of the model.
    tokens: [B, L] int32 prompts and responses.
    valid: [B, L] bool, true on what is not padding.
    mask: [B, T] bool, true on the responses; gives their length T.
    temperature: [] that the sampler divided by.
  """
  model = make_model(static)
  output = transformer.apply(
    model, params, tokens, valid, transformer.positions_of(valid)
  )
  length = mask.shape[1]
  head, vocab_axis = transformer.head(model, params)
  # The hidden state before a token is the one that chose it.
  logprobs, entropies = vocabulary.token_logprobs_and_entropy(
    output.hidden[:, -length - 1 : -1],
    head,
    tokens[:, -length:],
    temperature,
    vocab_axis=vocab_axis,
    softcap=None if model.softcap == math.inf else model.softcap,
  )
  return Forward(
    logprobs, entropies, output.max_logits, output.attention_entropy
  )


def forward_in_microbatches(
  static,
  params: base.Params,
  tokens: jax.Array,
  valid: jax.Array,
  mask: jax.Array,
  temperature: jax.Array | float,
  min_parts: int = 1,
) -> Forward:
  """`forward`, with the memory of one microbatch in both directions.

  Each of the train.num_microbatches keeps its inputs alone and runs again in
  the backward pass, which adds up the gradients. The loss sees all rows at
  once: also one that divides by the tokens of the whole minibatch has the
  value and the gradient of the full batch. The largest attention logits are
  those over all microbatches, the entropies of attention their mean over
  queries. There are `min_parts` of them or more, as far as
  the rows divide.
  """
  count = static.train.num_microbatches
  while count < min_parts and len(mask) % (2 * count) == 0:
    count *= 2
  if count == 1:
    return forward(static, params, tokens, valid, mask, temperature)
  run = lambda part: forward(
    static, params, part[0], part[1], part[2], temperature
  )
  split = jax.tree.map(
    lambda x: x.reshape(count, -1, x.shape[-1]), (tokens, valid, mask)
  )
  found = jax.lax.map(jax.checkpoint(run, prevent_cse=False), split)
  weights = jnp.sum(split[1], axis=(1, 2)) / jnp.sum(valid)
  return Forward(
    found.logprobs.reshape(mask.shape),
    found.entropies.reshape(mask.shape),
    reductions.nan_max(found.max_logits, axis=0),
    jax.tree.map(
      lambda x: jnp.tensordot(weights, x, 1), found.attention_entropy
    ),
  )


def logprobs_beside_an_update(
  static, params: base.Params, batch: base.Batch, temperature: jax.Array | float
) -> jax.Array:
  """[B, T] log-probabilities of a batch, in less memory than an update."""
  return forward_in_microbatches(
    static,
    params,
    batch.tokens,
    batch.valid,
    batch.mask,
    temperature,
    min_parts=_PARTS_BESIDE_AN_UPDATE,
  ).logprobs


def mean_entropy(entropies: jax.Array, mask: jax.Array) -> jax.Array:
  """[] entropy per trained token, nats, from entropies [B, T]; 0 if none."""
  return jnp.sum(jnp.where(mask, entropies, 0)) / jnp.maximum(jnp.sum(mask), 1)
