"""Runs main.py and kills its own process in the middle of its file work.

  python tests/killed_main.py EVENT DELAY_MS FOLDER arguments of main.py

counts what Python does with files below FOLDER (open, rename, mkdir, ...) and,
DELAY_MS after the EVENT-th such event, sends itself SIGKILL. With EVENT 0 it
only writes the number of events to stderr.
"""

import atexit
import os
import pathlib
import runpy
import signal
import sys
import threading
import time

_EVENTS = (
  'open',
  'os.rename',
  'os.mkdir',
  'os.remove',
  'os.rmdir',
  'shutil.rmtree',
  'os.listdir',
  'os.scandir',
)


class _Killer:
  """Counts events and kills at the chosen one."""

  def __init__(self, event, delay_s, folder):
    self._event, self._delay_s, self._folder = event, delay_s, folder
    self.count = 0

  def __call__(self, event, arguments):
    if event not in _EVENTS or self._folder not in str(arguments[0]):
      return
    self.count += 1
    if self.count == self._event:
      if self._delay_s:
        threading.Thread(target=self._kill_later, daemon=True).start()
      else:
        os.kill(os.getpid(), signal.SIGKILL)

  def _kill_later(self):
    time.sleep(self._delay_s)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
  """Installs the killer and runs main.py with what is left of the arguments."""
  event, delay_ms, folder, *arguments = sys.argv[1:]
  killer = _Killer(int(event), float(delay_ms) / 1000, folder)
  if not int(event):
    atexit.register(
      lambda: print(f'events {killer.count}', file=sys.stderr, flush=True)
    )
  script = pathlib.Path(__file__).parent.parent / 'experiments' / 'main.py'
  sys.argv = [str(script), *arguments]
  sys.addaudithook(killer)
  runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
  main()
