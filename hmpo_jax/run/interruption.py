"""SIGTERM and SIGINT: the first asks, the second ends the process."""

from collections.abc import Callable
import os
import signal
import socket
import threading

from hmpo_jax import base

EXIT_CODE = base.Interrupted.exit_code
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
  """Knows whether a signal asked the run to end; a context manager.

  Python runs a signal's handler only between bytecodes, so a second signal
  would wait for the end of a compilation. The C handler writes each signal to
  a socket at once, and a thread reads it there. Outside the main thread, where
  Python allows no handlers, signals keep their meaning.

  Attributes:
    tell: takes a line for the user when the first signal comes; None: silent.
    waits_for: what the process does before it ends, for that line.
  """

  def __init__(
    self, tell: Callable[[str], None] | None = None, waits_for: str = ''
  ):
    self.tell, self.waits_for = tell, waits_for
    self._asked = threading.Event()
    self._reader, self._writer = socket.socketpair()
    self._former: dict = {}
    self._former_wakeup = -1

  def __enter__(self):
    if threading.current_thread() is not threading.main_thread():
      return self
    self._writer.setblocking(False)
    self._former_wakeup = signal.set_wakeup_fd(
      self._writer.fileno(), warn_on_full_buffer=False
    )
    self._former = {
      number: signal.signal(number, lambda *_: None) for number in _SIGNALS
    }
    threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._former:
      for number, handler in self._former.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(self._former_wakeup)
    else:
      self._reader.close()  # else its thread does
    self._writer.close()

  def is_asked(self) -> bool:
    """Whether a signal has come."""
    return self._asked.is_set()

  def _watch(self):
    with self._reader:
      while received := self._reader.recv(1):
        if received[0] not in _SIGNALS:
          continue
        if self._asked.is_set():
          os._exit(EXIT_CODE)
        self._asked.set()
        if self.tell:
          # A terminal that takes no more may not keep the second signal.
          line = (
            f'interrupted: waits for {self.waits_for}; a second signal '
            'ends it at once'
          )
          threading.Thread(target=self.tell, args=(line,), daemon=True).start()
