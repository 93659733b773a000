"""A user's function on the host, that the configuration names.

It may do anything: it is called in a process of its own (`host_worker`), which
is kept for the next call and killed, with all that it started, where it takes
too long. `multiprocessing` and pools built on it would run the user's script
again in that process, and leave behind what the function started.
"""

import contextlib
import importlib.machinery
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref

from hmpo_jax import config as config_lib
from hmpo_jax.tasks import host_worker

_ROOT = pathlib.Path(__file__).parents[2]
_START = (
  'import sys; sys.path.insert(0, sys.argv[1]); from hmpo_jax.tasks '
  'import host_worker; host_worker.serve(sys.argv[2:])'
)
_GRACE = 5.0  # seconds for a process that was asked to end
_LOOK = 1.0  # seconds between two looks whether the process is there


class Failure(Exception):
  """The function raised, or its process was lost; says how, in one line."""


class Lost(Failure):
  """It took too long or ended its process: what it remembered is gone."""


class HostFunction:
  """What `function` and `timeout` of a section of the configuration name.

  Those of this package are called in place: they return.
  """

  def __init__(self, section: str, name: str, timeout: float, config=None):
    """Imports the function.

    Args:
      section: of the configuration, for messages.
      name: 'module:function' or 'file.py:function'; a class is a callable too.
      timeout: seconds that one call may take; its import takes what it takes.
      config: with which a class is made into the callable; None leaves it.

    Raises:
      ConfigError: there is no such callable, or the class can't be made.
    """
    self._section, self._name, self._timeout = section, name, timeout
    self._config = None if config is None else config.to_dict()
    self._host: host_worker.Host | _Process | None = None
    try:
      self._start()
    except Failure as failure:
      raise config_lib.ConfigError(
        f'config.{section}.function = {name!r}: must be module:function or '
        f'file.py:function; {failure}'
      ) from failure

  def call(self, method: str, *arguments):
    """What the function returned, as a method of `host_worker.Host` reads it.

    After `Lost` the next call is one of a function imported anew.

    Args:
      method: name of the method.
      *arguments: of the function, plain values.

    Raises:
      Failure: it raised or returned what is no answer.
      Lost: it took longer than the timeout, or its process has ended.
    """
    if self._host is None:
      self._start()
    return self._ask(method, *arguments)

  def _start(self):
    place, _, function = self._name.rpartition(':')
    self._host = (
      host_worker.Host() if _is_ours(place) else _Process(_path(place))
    )
    doing = 'importing'
    try:
      is_class = self._ask('load', place, function)
      if is_class and self._config is not None:
        doing = 'making'
        self._ask('make', self._config)
    except Failure as failure:
      self._host = None
      raise type(failure)(f'{doing} it {failure}') from failure

  def _ask(self, method, *arguments):
    assert self._host is not None
    timeout = None if method == 'load' else self._timeout
    try:
      reply = self._host.answer(pickle.dumps((method, arguments)), timeout)
    except _TimedOut:
      self._host = None
      raise Lost(
        f'took longer than config.{self._section}.timeout = {self._timeout} s'
      ) from None
    except _Ended as ended:
      self._host = None
      raise Lost(str(ended)) from None
    value, fault = pickle.loads(reply)
    if fault:
      raise Failure(fault)
    return value


def source(name: str) -> pathlib.Path | None:
  """The file of 'module:function' or 'file.py:function', without importing.

  None where there is none, and for this package's own, whose commit is known.
  """
  place = name.rpartition(':')[0]
  if _is_ours(place):
    return None
  if place.endswith('.py'):
    return pathlib.Path(place) if os.path.isfile(place) else None
  path, file = _path(place), ''
  for part in place.split('.'):
    spec = importlib.machinery.PathFinder.find_spec(part, path)
    if spec is None:
      return None
    path = list(spec.submodule_search_locations or ())
    file = spec.origin or ''
  return pathlib.Path(file) if os.path.isfile(file) else None


class _TimedOut(Exception):
  """No answer in time."""


class _Ended(Exception):
  """The process has ended; says how."""


class _Process:
  """A process that answers requests as `host_worker.Host` does."""

  def __init__(self, path):
    """Starts it, with this sys.path."""
    # Closed by the end of this process, however it comes, and before the
    # channel: see host_worker.
    reader, self._lifeline = os.pipe()
    self._channel, theirs = socket.socketpair()
    with theirs:
      arguments = [_ROOT, theirs.fileno(), reader, *path]
      self._process = subprocess.Popen(
        [sys.executable, '-P', '-c', _START, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), reader),
        # What it computes with JAX it computes on the host.
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        # A terminal's ^C is for this process; and a group to be killed.
        start_new_session=True,
      )
    os.close(reader)
    self._end = weakref.finalize(
      self, _end, self._process, self._channel, self._lifeline
    )

  def answer(self, request: bytes, timeout: float | None = None) -> bytes:
    """See `host_worker.Host.answer`.

    Raises:
      _TimedOut: it took more than so many seconds, and was killed.
      _Ended: it ended.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
      self._channel.settimeout(timeout)
      self._channel.sendall(host_worker.framed(request))
      length = self._receive(host_worker.LENGTH, deadline)
      return self._receive(int.from_bytes(length), deadline)
    except TimeoutError:
      self._process.kill()
      self._end()
      raise _TimedOut from None
    except (EOFError, ConnectionError):
      self._end()
      raise _Ended(_ending(self._process.returncode)) from None

  def _receive(self, size, deadline):
    data = bytearray()
    while len(data) < size:
      left = _LOOK if deadline is None else deadline - time.monotonic()
      if left <= 0:
        raise TimeoutError
      self._channel.settimeout(min(left, _LOOK))
      try:
        received = self._channel.recv(size - len(data))
      except TimeoutError:
        # What it started may keep the channel open.
        if self._process.poll() is None:
          continue
        received = b''
      if not received:
        raise EOFError
      data += received
    return bytes(data)


def _end(process, channel, lifeline):
  """Ends a process with all that it started; what waits to end it first may."""
  channel.close()
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(_GRACE)
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  os.close(lifeline)


def _ending(code):
  if code >= 0:
    return f'ended its process with exit code {code}'
  name = signal.Signals(-code).name
  hint = ' (out of memory?)' if -code == signal.SIGKILL else ''
  return f'ended its process by {name}{hint}'


def _is_ours(place):
  return place.partition('.')[0] == __name__.partition('.')[0]


def _path(place):
  """sys.path of a function's process: first the folder of its file, or this."""
  folder = (
    os.path.dirname(os.path.realpath(place))
    if place.endswith('.py')
    else os.getcwd()
  )
  return [folder, *filter(None, sys.path)]
