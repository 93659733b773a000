"""The policy of a configuration: its task, its model, its log-probabilities.

`static` is `config.static(config)`, the hashable part of a configuration.
"""

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.kernels import logprobs as logprobs_lib
from hmpo_jax.model import transformer
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
    return prompt_file.load(task.prompts, task.vocab_size, task.pad, task.stop,
                            task.response_len)
  return digits.make(task.name, task.num_digits)


def make_model(static) -> transformer.Transformer:
  """The model of a configuration, without its parameters."""
  return transformer.Transformer(
      vocab_size=make_task(static).vocab_size, **static.model)


def response_logprobs(
    static, params: base.Params, tokens: jax.Array, valid: jax.Array,
    mask: jax.Array, temperature: jax.Array | float
) -> tuple[jax.Array, jax.Array, transformer.Output]:
  """The training forward: log-probabilities of responses that are given.

  Args:
    static: hashable part of the configuration.
    params: of the model.
    tokens: [B, L] int32 prompts and responses.
    valid: [B, L] bool, true on what is not padding.
    mask: [B, T] bool, true on the responses; gives their length T.
    temperature: [] that the sampler divided by.

  Returns:
    log-probabilities [B, T] of the responses' tokens, the logits [B, T, V]
    that chose them, and the model's whole output.
  """
  output = transformer.apply(
      make_model(static), params, tokens, valid,
      transformer.positions_of(valid))
  length = mask.shape[1]
  # The logits before a token are those that chose it.
  logits = output.logits[:, -length - 1:-1]
  logprobs = logprobs_lib.token_logprobs(logits, tokens[:, -length:],
                                         temperature)
  return logprobs, logits, output


def mean_entropy(logits: jax.Array, mask: jax.Array,
                 temperature: jax.Array | float) -> jax.Array:
  """[] entropy per trained token, nats, from logits [B, T, V]; 0 if none."""
  entropy = logprobs_lib.entropy(logits, temperature)
  return jnp.sum(jnp.where(mask, entropy, 0)) / jnp.maximum(jnp.sum(mask), 1)
