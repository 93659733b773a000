"""A user's function on the host, that the configuration names.

It may do anything: it is called in a thread with a deadline, since nothing else
can be left alone.
"""

from collections.abc import Callable
import importlib
import pathlib
import queue
import runpy
import threading

from hmpo_jax import config as config_lib


class Failure(Exception):
  """The function raised or took too long; says which, in one line."""


class TimedOut(Failure):
  """It took too long."""


class HostFunction:
  """What `function` and `timeout` of a section of the configuration name."""

  def __init__(self, section: str, name: str, timeout: float):
    """Imports the function.

    Args:
      section: of the configuration, for messages.
      name: 'module:function' or 'file.py:function'; a class is a callable too.
      timeout: seconds that one call may take.

    Raises:
      ConfigError: there is no such callable.
    """
    self._section, self._timeout = section, timeout
    self.callable = _import(section, name)

  def call(self, function: Callable, *arguments):
    """What the function returns, or one that it has made.

    One that takes longer than the timeout goes on in its thread, unheard.

    Raises:
      Failure: it raised, which passes as it is if it is a Failure itself.
      TimedOut: it took longer.
    """
    results: queue.SimpleQueue = queue.SimpleQueue()

    def run():
      try:
        results.put((function(*arguments), None))
      except BaseException as error:  # pylint: disable=broad-exception-caught
        results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
      result, error = results.get(timeout=self._timeout)
    except queue.Empty:
      raise TimedOut(f'took longer than config.{self._section}.timeout = '
                     f'{self._timeout} s') from None
    if isinstance(error, Failure):
      raise error
    if error is not None:
      raise Failure(f'raised {_in_one_line(error)}') from error
    return result


def _import(section, name):
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
        f'config.{section}.function = {name!r}: must be module:function or '
        f'file.py:function; importing it ended in {_in_one_line(error)}'
    ) from error
  return found


def _in_one_line(error):
  """Type and text of an exception that is not ours: its text can fail too."""
  try:
    text = f'{type(error).__name__}: {error}'
  except BaseException:  # pylint: disable=broad-exception-caught
    text = f'{type(error).__name__} (its text could not be made)'
  return ' '.join(text.split())
