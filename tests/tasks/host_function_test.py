"""A user's function in its process: what it may do there, and how it ends."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from hmpo_jax import config as config_lib
from hmpo_jax.tasks import host_function
from tests import user_file

_ROOT = pathlib.Path(__file__).parents[2]

_TEXT = """
from concurrent import futures
import multiprocessing, os, pickle, re, signal, subprocess, sys, threading, time
import helper
class Point:
  def __init__(self, x): self.x = x
def square(point): return Point(point.x**2)
def pool(kind):
  context = multiprocessing.get_context(kind)
  with futures.ProcessPoolExecutor(2, mp_context=context) as executor:
    return [point.x for point in executor.map(square, [Point(2), Point(3)])]
def pickles(): return pickle.loads(pickle.dumps(Point(4))).x
def with_helper(): return helper.double(4)
def alarm():
  rung = []
  signal.signal(signal.SIGALRM, lambda *_: rung.append(1.))
  signal.setitimer(signal.ITIMER_REAL, .01)
  time.sleep(.1)
  return rung
def surroundings():
  return [__name__ == 'mine', 'jax' in sys.modules, os.getppid(), os.getpid(),
          os.environ['JAX_PLATFORMS'] == 'cpu',
          threading.current_thread() is threading.main_thread(),
          threading.active_count(), len(sys.argv)]
def wrong(): return helper.fail()
def elsewhere(): return {}['x']
def says(): print('said', flush=True); return 1
def echo(x): return x
def half(prompts, responses): return [.5] * len(responses)
def leave(code): os._exit(code)
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def crash(): os.abort()
def hold():
  print(os.getpid(), flush=True)
  re.match('(a+)+$', 'a' * 60 + 'b')  # years, with the lock
def sleep_with_child():
  child = subprocess.Popen(['sleep', '600'])
  with open(__file__ + '.pid', 'w') as file: file.write(str(child.pid))
  time.sleep(600)
def leave_child(): return subprocess.Popen(['sleep', '600']).pid
def moody(number):
  ways = (hold, kill, lambda: leave(0), lambda: time.sleep(9))
  if number % 500 < 4: ways[number % 500]()
  return [number]
class Counter:
  def __init__(self): self.calls = 0
  def __call__(self, code=None):
    if code is not None: os._exit(code)
    self.calls += 1
    return self.calls
class Slow:
  def __init__(self): time.sleep(600)
number = 3
def mute():
  import sys
  sys.stdout = None
  return 1
def shut():
  import sys
  sys.stdout.close()
  return 1
def verbose(): raise ValueError('no' * 10**6)
"""
_HELPER = """
def double(x): return 2 * x
def fail():
  raise ValueError('no\\nluck')
"""

_SCRIPT = """
import os, sys
def f(): return 1
if __name__ != 'script':
  os.write(1, b'starts\\n')
  from hmpo_jax.tasks import host_function
  host = host_function.HostFunction('reward', sys.argv[1], 600.)
  value = host.call('numbers')
  try: os.write(1, b'ends\\n')
  except BrokenPipeError: pass
  sys.exit(value != 1)
"""


def _is_there(pid):
  """Whether a process runs: one that nobody waited for does not."""
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8')
  except OSError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def _gone(pid, seconds=10.0):
  """Waits until a process has ended; returns whether it has."""
  deadline = time.monotonic() + seconds
  while _is_there(pid) and time.monotonic() < deadline:
    time.sleep(0.01)
  return not _is_there(pid)


class _FileTest(user_file.UserFileTest):
  TEXT = _TEXT

  def setUp(self):
    super().setUp()
    (self.folder / 'helper.py').write_text(_HELPER, encoding='utf-8')

  def _host(self, function, timeout=30.0, config=None):
    return host_function.HostFunction(
      'reward', f'{self.file}:{function}', timeout, config
    )

  def _call(self, function, *arguments, **options):
    return self._host(function, **options).call('numbers', *arguments)


class CallTest(_FileTest):
  @parameterized.parameters(('pickles', 4), ('with_helper', 8), ('alarm', [1]))
  def test_file_is_a_module_like_any_other(self, function, expected):
    self.assertEqual(self._call(function), expected)

  @parameterized.parameters('mute', 'shut')
  def test_output_that_is_put_aside_is_no_failure(self, function):
    host = self._host(function)
    self.assertEqual([host.call('numbers') for _ in range(2)], [1, 1])

  def test_link_to_a_file_of_another_name(self):
    stored = self.folder / 'store' / '0a1b2c'
    stored.parent.mkdir()
    stored.write_text('def f(): return 2', encoding='utf-8')
    link = self.folder / 'linked.py'
    link.symlink_to(stored)
    host = host_function.HostFunction('reward', f'{link}:f', 30.0)
    self.assertEqual(host.call('numbers'), 2)
    stored.unlink()
    with self.assertRaisesRegex(config_lib.ConfigError, 'No such file'):
      host_function.HostFunction('reward', f'{link}:f', 30.0)

  def test_long_text_of_an_exception_is_cut(self):
    with self.assertRaisesRegex(
      host_function.Failure, '^raised ValueError'
    ) as (caught):
      self._call('verbose')
    self.assertLess(len(str(caught.exception)), 600)

  @parameterized.parameters('spawn', 'fork')
  def test_pool_of_processes(self, kind):
    self.assertEqual(self._call('pool', kind), [4, 9])

  def test_process_is_the_functions_alone(self):
    (
      is_mine,
      has_jax,
      parent,
      child,
      is_on_cpu,
      is_main,
      threads,
      arguments,
    ) = self._call('surroundings')
    self.assertEqual((is_mine, has_jax, is_on_cpu, is_main), (1, 0, 1, 1))
    self.assertEqual((threads, arguments), (1, 1))
    self.assertEqual(parent, os.getpid())
    self.assertNotEqual(child, parent)

  def test_process_is_kept(self):
    host = self._host('surroundings')
    self.assertEqual(host.call('numbers'), host.call('numbers'))

  def test_module_of_the_working_directory(self):
    with contextlib.chdir(self.folder):
      host = host_function.HostFunction('reward', 'helper:double', 30.0)
    self.assertEqual(host.call('numbers', 3), 6)

  def test_name_that_is_taken(self):
    file = self.folder / 'signal.py'
    file.write_text('def f(): return 1', encoding='utf-8')
    with self.assertRaisesRegex(
      config_lib.ConfigError, "module 'signal' already: rename the file"
    ):
      host_function.HostFunction('reward', f'{file}:f', 30.0)

  @parameterized.parameters(
    ('wrong', r'raised ValueError: no luck \(helper\.py, line 4\)$'),
    ('elsewhere', r"raised KeyError: 'x' \(mine\.py, line 26\)$"),
    ('number', 'number is not callable'),
  )
  def test_failure_names_file_and_line(self, function, words):
    with self.assertRaisesRegex(Exception, words):
      self._call(function)

  def test_large_arguments_and_answers(self):
    values = [i / 2 for i in range(1_000_000)]
    self.assertEqual(self._call('echo', values), values)


class EndTest(_FileTest):
  @parameterized.parameters(
    ('leave', (0,), 'ended its process with exit code 0'),
    ('leave', (3,), 'ended its process with exit code 3'),
    ('kill', (), r'ended its process by SIGKILL \(out of memory\?\)'),
    ('crash', (), 'ended its process by SIGABRT'),
    ('hold', (), r'took longer than config\.reward\.timeout = 1\.0 s'),
  )
  def test_function_that_is_lost(self, function, arguments, words):
    host = self._host(function, timeout=1.0)
    for _ in range(2):  # each time it is imported anew
      with self.assertRaisesRegex(host_function.Lost, words):
        host.call('numbers', *arguments)

  def test_object_is_made_anew(self):
    host = self._host('Counter', config=config_lib.default_config())
    self.assertEqual([host.call('numbers') for _ in range(3)], [1, 2, 3])
    with self.assertRaises(host_function.Lost):
      host.call('numbers', 0)
    self.assertEqual(host.call('numbers'), 1)

  def test_function_that_can_not_be_imported_anew(self):
    host = self._host('leave')
    with self.assertRaises(host_function.Lost):
      host.call('numbers', 1)
    self.file.write_text('', encoding='utf-8')
    with self.assertRaisesRegex(
      host_function.Failure, 'importing it raised AttributeError'
    ):
      host.call('numbers', 1)

  def test_import_that_ends_the_process(self):
    self.file.write_text('import os; os._exit(4)', encoding='utf-8')
    with self.assertRaisesRegex(
      config_lib.ConfigError, 'importing it ended its process with exit'
    ):
      self._host('f')

  def test_object_that_is_long_in_the_making(self):
    with self.assertRaisesRegex(
      config_lib.ConfigError, 'making it took longer than'
    ):
      self._host('Slow', timeout=0.1, config=config_lib.default_config())

  def test_what_it_started_ends_with_it(self):
    with self.assertRaises(host_function.Lost):
      self._call('sleep_with_child', timeout=1.0)
    self.assertTrue(
      _gone(int(pathlib.Path(f'{self.file}.pid').read_text('utf-8')))
    )
    self.assertTrue(_gone(int(self._call('leave_child'))))

  def test_process_ends_with_its_owner(self):
    host = self._host('surroundings')
    child = int(host.call('numbers')[3])
    self.assertTrue(_is_there(child))
    del host
    self.assertTrue(_gone(child))


class ScriptTest(_FileTest):
  """A user's script, without a guard: no process may run it again."""

  def _script(self, function, file='mine.py'):
    script = self.folder / 'script.py'
    script.write_text(_SCRIPT, encoding='utf-8')
    return subprocess.Popen(
      [sys.executable, script, f'{self.folder / file}:{function}'],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      stdout=subprocess.PIPE,
      text=True,
    )

  def test_output_reaches_the_terminal(self):
    with self._script('says') as script:
      output = script.stdout.read()
    self.assertEqual(output, 'starts\nsaid\nends\n')

  def test_reader_that_goes_away_is_no_failure(self):
    with self._script('says') as script:
      script.stdout.readline()
      script.stdout.close()
    self.assertEqual(script.returncode, 0)

  def test_script_that_names_itself(self):
    with self._script('f', 'script.py') as script:
      output = script.stdout.read()
    self.assertEqual(output, 'starts\nends\n')

  @parameterized.parameters(signal.SIGKILL, signal.SIGTERM)
  def test_killed_owner_leaves_nothing(self, number):
    with self._script('hold') as script:
      self.assertEqual(script.stdout.readline(), 'starts\n')
      child = int(script.stdout.readline())
      self.assertTrue(_is_there(child))
      script.send_signal(number)
    self.assertTrue(_gone(child))


class SoakTest(_FileTest):
  @pytest.mark.long
  def test_ten_thousand_calls(self):
    host, lost = self._host('moody', timeout=0.3), 0
    for number in range(10_000):
      try:
        self.assertEqual(host.call('numbers', number), [number])
      except host_function.Lost:
        self.assertLess(number % 500, 4)
        lost += 1
    self.assertEqual(lost, 80)

  @pytest.mark.long
  def test_cost(self):
    host = self._host('half')
    for rows, tokens in ((128, 16), (512, 512)):
      prompts = [[7] * tokens] * rows
      responses = [list(range(300, 300 + tokens)) for _ in range(rows)]
      seconds = []
      for _ in range(30):
        start = time.perf_counter()
        host.call('numbers', prompts, responses)
        seconds.append(time.perf_counter() - start)
      print(f'{rows} x {tokens} tokens: {1e3 * np.median(seconds):.2f} ms')


if __name__ == '__main__':
  absltest.main()
