"""Rewards from a user's function on the host, which may fail in any way."""

from collections.abc import Callable
import importlib
import pathlib
import queue
import runpy
import threading

import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.tasks import task as task_lib

# Takes prompts and responses, lists of token lists without padding (a response
# with its stop token), and returns one number from 0 to 1 for each.
Function = Callable[[list[list[int]], list[list[int]]], list[float]]


class RewardError(Exception):
  """The reward function failed; names it and says how."""


class HostReward:
  """Calls a reward function with a deadline, and checks what it returns."""

  def __init__(self, name: str, timeout: float, prompt_len: int):
    """Imports the function.

    Args:
      name: 'module:function' or 'file.py:function', of the type `Function`.
      timeout: seconds that one call may take.
      prompt_len: P, to part prompts and responses.

    Raises:
      ConfigError: there is no such function.
    """
    self._name, self._timeout, self._prompt_len = name, timeout, prompt_len
    self._function = _import(name)

  def __call__(self, rollout: base.Rollout) -> task_lib.Score:
    """Scores the responses of a rollout; `exact` is a reward of 1.

    NaN passes: the learner skips and counts the updates that it spoils.

    Raises:
      RewardError: the function raised, returned something else than one number
        from 0 to 1 for each response, or took longer than the timeout.
    """
    tokens, valid = np.asarray(rollout.tokens), np.asarray(rollout.valid)
    part = lambda columns: [
        row[keep].tolist()
        for row, keep in zip(tokens[:, columns], valid[:, columns])
    ]
    result = self._call(
        part(slice(self._prompt_len)), part(slice(self._prompt_len, None)))
    try:
      reward = np.asarray(result, np.float32)
    except (TypeError, ValueError) as error:
      raise self._error(f'returned no numbers ({error})') from error
    if reward.shape != (len(tokens),):
      raise self._error(f'returned shape {reward.shape}, must be one number '
                        f'for each of {len(tokens)} responses')
    if np.any((reward < 0) | (reward > 1)):
      raise self._error(f'returned values from {np.nanmin(reward):.6g} to '
                        f'{np.nanmax(reward):.6g}, must be from 0 to 1')
    exact = (reward == 1).astype(np.float32)
    return task_lib.Score(jnp.asarray(reward), jnp.asarray(exact))

  def _call(self, prompts, responses):
    """Runs the function in a thread, since nothing else can be left alone."""
    results: queue.SimpleQueue = queue.SimpleQueue()

    def run():
      try:
        results.put((self._function(prompts, responses), None))
      except BaseException as error:  # pylint: disable=broad-exception-caught
        results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
      result, error = results.get(timeout=self._timeout)
    except queue.Empty:
      raise self._error(
          f'took longer than config.reward.timeout = {self._timeout} s'
      ) from None
    if error is not None:
      raise self._error(f'raised {_in_one_line(error)}') from error
    return result

  def _error(self, text):
    return RewardError(f'config.reward.function = {self._name!r} {text}')


def _import(name):
  place, _, function = name.rpartition(':')
  try:
    if place.endswith('.py'):
      found = runpy.run_path(str(pathlib.Path(place)))[function]
    else:
      found = getattr(importlib.import_module(place), function)
    if not callable(found):
      raise TypeError(f'{function} is not callable')
  except (Exception, SystemExit) as error:  # pylint: disable=broad-exception-caught
    # The module is the user's: its import can raise anything.
    raise config_lib.ConfigError(
        f'config.reward.function = {name!r}: must be module:function or '
        f'file.py:function; importing it ended in {_in_one_line(error)}'
    ) from error
  return found


def _in_one_line(error):
  """Type and text of an exception that is not ours: its text can fail too."""
  try:
    text = f'{type(error).__name__}: {error}'
  except Exception:  # pylint: disable=broad-exception-caught
    text = f'{type(error).__name__} (its text could not be made)'
  return ' '.join(text.split())
