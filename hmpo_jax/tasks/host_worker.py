"""The process of a user's function, which may do there whatever it likes.

It runs alone in the main thread, so that alarms, signals and process pools are
its own. Of this package the process imports `replies` alone and so starts in
some hundredths of a second; what else it imports is the user's.
"""

import fcntl
import importlib
import importlib.util
import inspect
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from typing import Any

from hmpo_jax.tasks import replies

# Whose frames say nothing of where a function failed.
_OURS = (__file__, replies.__file__, importlib.__file__)
_LONGEST = 500  # characters of what is said of an exception
LENGTH = 8  # bytes before a message, that say how long it is


class Host:
  """A user's function, and what it makes of requests."""

  def __init__(self):
    self._function: Any = None
    self._folder = ''  # of its file

  def answer(self, request: bytes, timeout: float | None = None) -> bytes:
    """What came of a request.

    Args:
      request: pickled (name, arguments) of one of the methods below.
      timeout: not kept here, where nothing can end a function.

    Returns:
      Pickled (what it returned, what went wrong); the latter begins with a verb
      and is '' if nothing did.
    """
    del timeout
    try:
      name, arguments = pickle.loads(request)
      reply = getattr(self, name)(*arguments), ''
    except replies.Refused as error:
      reply = None, _in_one_line(error)
    except BaseException as error:  # noqa: BLE001
      reply = None, f'raised {self._described(error)}'
    return pickle.dumps(reply)

  def load(self, place: str, function: str) -> bool:
    """Imports the function; returns whether it is a class.

    Args:
      place: name of a module, or path of a file, which becomes the module that
        `import` would make of it: what it pickles other processes can read.
      function: its name there.
    """
    module = (
      _of_file(place)
      if place.endswith('.py')
      else importlib.import_module(place)
    )
    self._folder = os.path.dirname(getattr(module, '__file__', None) or '')
    self._function = getattr(module, function)
    if not callable(self._function):
      raise TypeError(f'{function} is not callable')
    return inspect.isclass(self._function)

  def make(self, config: dict) -> None:
    """Makes an object of a class, which is the function from then on.

    Args:
      config: passed as a ConfigDict, if the class takes `config`.
    """
    try:
      takes = 'config' in inspect.signature(self._function).parameters
    except (TypeError, ValueError):  # a class that isn't Python's
      takes = False
    if takes:
      import ml_collections  # noqa: PLC0415

      self._function = self._function(config=ml_collections.ConfigDict(config))
    else:
      self._function = self._function()
    if not callable(self._function):
      raise replies.Refused('gave an object without __call__')

  def numbers(self, *arguments):
    """What it returns, as numbers; see `replies.numbers`."""
    return replies.numbers(self._function(*arguments))

  def decisions(self, *arguments):
    """What it returns, as decisions; see `replies.decisions`."""
    return replies.decisions(self._function(*arguments))

  def _described(self, error):
    """The exception with its place: the last in the folder of the function."""
    frames = [
      (frame.f_code.co_filename, line)
      for frame, line in traceback.walk_tb(error.__traceback__)
      if frame.f_code.co_filename not in _OURS
      and not frame.f_code.co_filename.startswith('<frozen')
    ]
    own = [at for at in frames if os.path.dirname(at[0]) == self._folder]
    text = _in_one_line(error, f'{type(error).__name__}: ')
    if not frames or isinstance(error, SyntaxError):  # which names it itself
      return text
    file, line = (own or frames)[-1]
    return f'{text} ({os.path.basename(file) if own else file}, line {line})'


def serve(arguments: list[str]) -> None:
  """Answers requests until nobody is there who could make any.

  Args:
    arguments: descriptors of the socket and of a pipe's end that stays silent
      and closes with the process that asks, and the entries of sys.path.
  """
  channel, lifeline, *sys.path[:] = arguments
  sys.argv[1:] = []
  _end_with(int(lifeline))
  host = Host()
  with socket.socket(fileno=int(channel)) as sock, sock.makefile('rb') as file:
    sock.set_inheritable(False)
    while length := file.read(LENGTH):
      request = file.read(int.from_bytes(length))
      _drop_unread_output()
      answer = host.answer(request)
      _flush_output()
      sock.sendall(framed(answer))


def framed(message: bytes) -> bytes:
  """A message with its length before it."""
  return len(message).to_bytes(LENGTH) + message


def _of_file(path):
  path = os.path.abspath(path)  # a link's own name is the module's
  name = os.path.basename(path).removesuffix('.py')
  if name in sys.modules:
    raise ImportError(f'there is a module {name!r} already: rename the file')
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def _end_with(lifeline):
  """Has the kernel kill the process with all that it started, by SIGKILL.

  A thread that waits for the end of the pipe would not do: a function can keep
  the interpreter's lock, and a process with threads should not fork.
  """
  os.set_inheritable(lifeline, False)
  fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
  if hasattr(fcntl, 'F_SETSIG'):  # else SIGIO, which ends a process as well
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
  flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
  fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
  if select.select([lifeline], [], [], 0)[0]:
    sys.exit()  # it was closed before


def _drop_unread_output():
  """A reader of the output that has gone away is no fault of the function."""
  poll = select.poll()
  for descriptor in (1, 2):
    poll.register(descriptor, 0)
  for descriptor, event in poll.poll(0):
    if event & select.POLLERR:
      _drop(descriptor)


def _flush_output():
  try:
    sys.stdout.flush()
  except OSError:
    _drop(1)
  except Exception:  # noqa: BLE001
    # The function has put something else there, or closed it.
    sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)


def _drop(descriptor):
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, descriptor)
  os.close(null)


def _in_one_line(error, prefix=''):
  """Text of an exception that is not ours: it can fail too."""
  try:
    text = f'{prefix}{error}'
  except BaseException:  # noqa: BLE001
    text = f'{prefix.rstrip(": ")} (its text could not be made)'
  return ' '.join(text.split())[:_LONGEST]
