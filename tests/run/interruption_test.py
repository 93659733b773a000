"""What signals do to a process that is interruptible."""

import gc
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import warnings

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax.run import interruption

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# What a child runs; it says 'asked' as soon as it knows.
_START = """
import hashlib, os, signal, threading, time
from hmpo_jax.run import interruption

def say(text):
  os.write(1, f'{text}\\n'.encode())

def wait():
  while not interruption.is_asked():
    time.sleep(0.01)
  say('asked')

# A shell may have started this with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with interruption.Interruption() as interruption:
  signal.signal(signal.SIGUSR1, lambda *_: say('other'))
  say('ready')
"""
_IN_PYTHON = """
  wait()
"""
# One call of minutes that lets other threads run, as a compilation does.
_IN_C = """
  threading.Thread(target=wait, daemon=True).start()
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""
# The user's terminal takes no more, as one that was stopped by ^S.
_STUCK = """
  interruption.tell = lambda text: (say(text), time.sleep(60))
  interruption.waits_for = 'step 7'
  say('stuck')
"""
_LEFT = """
say('left')
time.sleep(60)
"""


class ChildTest(parameterized.TestCase):
  def _start(self, *parts):
    child = self.enter_context(
      subprocess.Popen(
        [sys.executable, '-c', ''.join((_START, *parts))],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
      )
    )
    self.addCleanup(child.kill)
    # Whoever waits for a line then reads the end of the file instead.
    timer = threading.Timer(20, child.kill)
    timer.start()
    self.addCleanup(timer.cancel)
    self._assert_says(child, 'ready')
    return child

  def _assert_says(self, child, text):
    self.assertEqual(child.stdout.readline(), f'{text}\n')

  def _assert_ends(self, child, code):
    self.assertEqual(child.wait(timeout=10), code)

  @parameterized.parameters(*_SIGNALS)
  def test_first_signal_asks_and_the_process_goes_on(self, number):
    child = self._start(_IN_PYTHON)
    child.send_signal(number)
    self._assert_says(child, 'asked')
    self._assert_ends(child, 0)

  @parameterized.product(first=_SIGNALS, second=_SIGNALS)
  def test_second_ends_it_within_a_call_in_c(self, first, second):
    child = self._start(_IN_C)
    child.send_signal(first)
    self._assert_says(child, 'asked')
    self.assertIsNone(child.poll())
    child.send_signal(second)
    self._assert_ends(child, interruption.EXIT_CODE)

  def test_first_is_told_at_once_and_never_in_the_way_of_the_second(self):
    child = self._start(_STUCK, _IN_C)
    self._assert_says(child, 'stuck')
    child.send_signal(signal.SIGINT)
    self.assertCountEqual(
      [child.stdout.readline() for _ in range(2)],
      [
        'asked\n',
        'interrupted: waits for step 7; a second signal ends it at once\n',
      ],
    )
    child.send_signal(signal.SIGINT)
    self._assert_ends(child, interruption.EXIT_CODE)

  def test_other_signals_ask_for_nothing(self):
    child = self._start(_IN_PYTHON)
    for _ in range(2):
      child.send_signal(signal.SIGUSR1)
      self._assert_says(child, 'other')
    child.send_signal(signal.SIGTERM)
    self._assert_says(child, 'asked')
    self._assert_ends(child, 0)

  @parameterized.parameters(*_SIGNALS)
  def test_signals_mean_what_they_did_after_it(self, number):
    child = self._start(_LEFT)
    self._assert_says(child, 'left')
    child.send_signal(number)
    self._assert_ends(child, -number)


class InterruptionTest(absltest.TestCase):
  def _state(self):
    """Handlers and wakeup descriptor of this process."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return [signal.getsignal(number) for number in _SIGNALS], wakeup

  def test_restores_handlers_and_wakeup_descriptor(self):
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with reader, writer:
      former = signal.set_wakeup_fd(writer.fileno())
      before = self._state()
      with self.assertRaises(ZeroDivisionError):
        with interruption.Interruption() as inside:
          self.assertFalse(inside.is_asked())
          self.assertNotEqual(self._state(), before)
          _ = 1 / 0
      after = self._state()
      signal.set_wakeup_fd(former)
    self.assertEqual(after, before)

  def test_outside_the_main_thread_it_is_inert_and_leaves_nothing_open(self):
    before, seen = self._state(), []

    def run():
      with interruption.Interruption() as inside:
        seen.extend([signal.getsignal(number) for number in _SIGNALS])
        seen.append(inside.is_asked())

    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      thread = threading.Thread(target=run)
      thread.start()
      thread.join()
      del run
      gc.collect()
    self.assertEqual(seen, [*before[0], False])
    self.assertEqual(self._state(), before)
    self.assertEmpty(
      [str(w.message) for w in caught if 'socket' in str(w.message)]
    )


if __name__ == '__main__':
  absltest.main()
