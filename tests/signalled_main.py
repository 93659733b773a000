"""Runs main.py and signals its own process in the middle of a phase.

  python tests/signalled_main.py PHASE SIGNAL arguments of main.py

PHASE is compile (of the updates), rollout or update (of the second step), or
save (the first). rollout and update are apart only where the reward is a
function on the host.
"""

import os
import pathlib
import runpy
import signal
import sys
import threading

import jax
import jax.monitoring

from hmpo_jax.run import checkpoint
from hmpo_jax.training import programs

_COMPILES = '/jax/compilation_cache/compile_requests_use_cache'


def _signal_in_phase(phase, number):
  """Arranges that the process signals itself once, with `number`."""
  home, name, call = {
    'compile': (programs, '_learn', 1),
    'rollout': (programs, '_collect', 2),
    'update': (programs, '_learn', 2),
    'save': (checkpoint.Checkpointer, '_seal', 1),
  }[phase]
  inside = getattr(home, name)
  calls = 0

  def signalling(*args):
    nonlocal calls
    calls += 1
    if calls == call and phase == 'compile':
      jax.monitoring.register_event_listener(_once(number))
    result = inside(*args)
    if calls == call and phase != 'compile':
      # A program is still running then: its call returns before it ends.
      os.kill(os.getpid(), number)
    return result

  def sealing(*args):
    # On the thread that waits for the checkpoint to be whole.
    os.kill(os.getpid(), number)
    setattr(home, name, inside)
    return inside(*args)

  setattr(home, name, sealing if phase == 'save' else signalling)


def _once(number):
  sent = threading.Event()

  def listen(event, **_):
    if event == _COMPILES and not sent.is_set():
      sent.set()
      os.kill(os.getpid(), number)

  return listen


def main():
  """Installs the signal and runs main.py with what is left of the arguments."""
  phase, name, *arguments = sys.argv[1:]
  _signal_in_phase(phase, getattr(signal, name))
  script = pathlib.Path(__file__).parent.parent / 'experiments' / 'main.py'
  sys.argv = [str(script), *arguments]
  runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
  main()
