"""Rewards from a user's function on the host, which may fail in any way."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax.tasks import host_function
from hmpo_jax.tasks import task as task_lib

# Takes prompts and responses, lists of token lists without padding (a response
# with its stop token), and returns one number from 0 to 1 for each.
Function = Callable[[list[list[int]], list[list[int]]], list[float]]


class RewardError(Exception):
  """The reward function failed; names it and says how."""


class HostReward:
  """Calls a reward function in a process, and checks what it returns."""

  def __init__(self, name: str, timeout: float, prompt_len: int):
    """Imports the function.

    Args:
      name: 'module:function' or 'file.py:function', of the type `Function`.
      timeout: seconds that one call may take.
      prompt_len: P, to part prompts and responses.

    Raises:
      ConfigError: there is no such function.
    """
    self._name, self._prompt_len = name, prompt_len
    self._host = host_function.HostFunction('reward', name, timeout)

  def __call__(self, rollout: base.Rollout) -> task_lib.Score:
    """Scores the responses of a rollout; `exact` is a reward of 1.

    NaN passes: the learner skips and counts the updates that it spoils.

    Raises:
      RewardError: the function raised, returned something else than one number
        from 0 to 1 for each response, took longer than the timeout or ended its
        process.
    """
    tokens, valid = np.asarray(rollout.tokens), np.asarray(rollout.valid)
    part = lambda columns: [
      row[keep].tolist()
      for row, keep in zip(tokens[:, columns], valid[:, columns])
    ]
    result = self._call(
      part(slice(self._prompt_len)), part(slice(self._prompt_len, None))
    )
    reward = np.asarray(result, np.float32)
    if reward.shape != (len(tokens),):
      raise self._error(
        f'returned shape {reward.shape}, must be one number '
        f'for each of {len(tokens)} responses'
      )
    if np.any((reward < 0) | (reward > 1)):
      raise self._error(
        f'returned values from {np.nanmin(reward):.6g} to '
        f'{np.nanmax(reward):.6g}, must be from 0 to 1'
      )
    exact = (reward == 1).astype(np.float32)
    return task_lib.Score(jnp.asarray(reward), jnp.asarray(exact))

  def _call(self, prompts, responses):
    try:
      return self._host.call('numbers', prompts, responses)
    except host_function.Failure as error:
      raise self._error(str(error)) from error

  def _error(self, text):
    return RewardError(f'config.reward.function = {self._name!r} {text}')
