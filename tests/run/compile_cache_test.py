"""What a start leaves for the next, and whose choice of a folder wins."""

import os
import pathlib
import subprocess
import sys
import tempfile
import types
from unittest import mock
import zlib

from absl import app
from absl.testing import absltest
from absl.testing import parameterized
import jax

from hmpo_jax.run import command_line
from hmpo_jax.run import compile_cache

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = 'jax_compilation_cache_dir'
_MIN_COMPILE_TIME = 'jax_persistent_cache_min_compile_time_secs'
_VARIABLES = (
  _FOLDER.upper(),
  _MIN_COMPILE_TIME.upper(),
  'JAX_ENABLE_COMPILATION_CACHE',
)
# Prints misses and hits of a program of ours with one function that is worth
# keeping and some, by operations outside of jit, that are not by JAX's default.
_PROGRAM = f"""
import collections
from absl import app
import jax
import jax.numpy as jnp
from hmpo_jax.run import command_line
assert jax.config.{_FOLDER} is None  # imports switch nothing on
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
def main(_):
  y = jax.jit(jnp.tanh)(jnp.arange(3.) + 1)
  assert float(y.sum()) > 2
  print(*(counts['/jax/compilation_cache/cache_' + kind]
          for kind in ('misses', 'hits')))
app.run(main, flags_parser=command_line.parse_all)
"""


def _environment(caches):
  """The process's, with another folder of caches and no word on JAX's."""
  others = {
    name: value for name, value in os.environ.items() if name not in _VARIABLES
  }
  return others | {'XDG_CACHE_HOME': str(caches)}


def _start(caches):
  """(misses, hits) of the program in a new process."""
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    env=_environment(caches) | {'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  misses, hits = result.stdout.split()
  return int(misses), int(hits)


def _age(file, seconds):
  """Makes a file that much older than it is."""
  time = file.stat().st_mtime - seconds
  os.utime(file, (time, time))


class CompileCacheTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.caches = pathlib.Path(folder.name)
    self.folder = self.caches / 'hmpo_jax' / 'compiled'

  def _switch_on(self, options=(), variables=()):
    """JAX's options after `switch_on`, where the user set only these."""
    options = {_FOLDER: None, _MIN_COMPILE_TIME: 1.0} | dict(options)
    for name, value in options.items():
      self.addCleanup(jax.config.update, name, getattr(jax.config, name))
      jax.config.update(name, value)
    environment = _environment(self.caches) | dict.fromkeys(variables, 'set')
    with mock.patch.dict(os.environ, environment, clear=True):
      compile_cache.switch_on()
    return tuple(getattr(jax.config, name) for name in options)

  def test_second_start_compiles_nothing(self):
    misses, hits = _start(self.caches)
    self.assertGreater(misses, 1)
    self.assertEqual(hits, 0)
    self.assertEqual(_start(self.caches), (0, misses))

  def test_benchmarks_compile(self):
    with mock.patch.object(app, 'call_after_init') as later:
      command_line.parse_all(['bench.py'], keep_programs=False)
      later.assert_not_called()
      command_line.parse_all(['main.py'])
      later.assert_called_once_with(compile_cache.switch_on)

  def test_keeps_all_in_a_folder_of_the_user(self):
    self.assertEqual(self._switch_on(), (str(self.folder), 0.0))
    self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)

  @parameterized.parameters(('mine', True), ('', True), ('mine', False))
  def test_folder_that_the_user_set_wins(self, mine, by_variable):
    variables = [_FOLDER.upper()] if by_variable else []
    self.assertEqual(self._switch_on({_FOLDER: mine}, variables), (mine, 0.0))
    self.assertFalse(self.folder.exists())

  @parameterized.parameters((0.3, True), (1.0, True), (0.3, False))
  def test_time_that_the_user_set_wins(self, seconds, by_variable):
    variables = [_MIN_COMPILE_TIME.upper()] if by_variable else []
    self.assertEqual(
      self._switch_on({_MIN_COMPILE_TIME: seconds}, variables),
      (str(self.folder), seconds),
    )

  def test_stays_off_where_jax_has_it_off(self):
    jax.config.update('jax_enable_compilation_cache', False)
    self.addCleanup(jax.config.update, 'jax_enable_compilation_cache', True)
    self.assertEqual(self._switch_on(), (None, 1.0))
    self.assertFalse(self.folder.exists())

  def test_folder_that_cant_be_made_costs_one_line(self):
    (self.caches / 'hmpo_jax').write_text('a file', encoding='utf-8')
    with mock.patch.object(sys, 'stderr') as stderr:
      folder, _ = self._switch_on()
    self.assertIsNone(folder)
    text = ''.join(call.args[0] for call in stderr.write.call_args_list)
    self.assertStartsWith(text, 'warning: compiled programs are not kept')
    self.assertEqual(text.count('\n'), 1)

  def test_relative_folder_of_caches_is_ignored(self):
    with mock.patch.dict(os.environ, HOME='/home/me', XDG_CACHE_HOME='here'):
      self.assertEqual(
        str(compile_cache.folder()), '/home/me/.cache/hmpo_jax/compiled'
      )

  def test_without_a_home_nothing_is_kept(self):
    # As os.path.expanduser leaves it where neither HOME nor the user database
    # knows one.
    with (
      mock.patch.object(os.path, 'expanduser', lambda path: path),
      mock.patch.object(sys, 'stderr') as stderr,
    ):
      self.caches = pathlib.Path()  # no absolute one
      self.assertIsNone(compile_cache.folder())
      folder, _ = self._switch_on()
    self.assertIsNone(folder)
    text = ''.join(call.args[0] for call in stderr.write.call_args_list)
    self.assertIn('not kept (no home folder is known)', text)

  @parameterized.named_parameters(
    ('cut', lambda whole: whole[:-1]),
    ('empty', lambda _: b''),
    ('lost_to_a_power_cut', lambda whole: bytes(len(whole))),
    ('flipped', lambda whole: whole[:20] + b'?' + whole[21:]),
    ('cut_zstd', lambda _: b'\x28\xb5\x2f\xfdcut'),
  )
  def test_damaged_files_go(self, damage):
    whole = zlib.compress(b'a program of some length' * 9)
    files = {'whole': whole, 'zstd': b'\x28\xb5\x2f\xfdwhole'}
    for name, content in (files | {'damaged': damage(whole)}).items():
      (self.caches / f'{name}-cache').write_bytes(content)
    with mock.patch.dict(sys.modules, self._zstd()):
      compile_cache.tidy(self.caches)
    self.assertEqual(
      {file.name for file in self.caches.glob('*-cache')},
      {'whole-cache', 'zstd-cache'},
    )

  def _zstd(self):
    """A stand-in for either library of zstd."""

    def decompress(content):
      if content.endswith(b'cut'):
        raise ZeroDivisionError
      return content

    module = types.SimpleNamespace(
      decompress=decompress, ZstdError=ZeroDivisionError
    )
    return {'zstandard': module, 'compression.zstd': module}

  def test_files_are_read_once(self):
    (self.caches / 'folder-cache').mkdir()  # a user's
    compile_cache.tidy(self.caches)
    old, new = (self.caches / f'{name}-cache' for name in ('old', 'new'))
    old.write_bytes(b'damaged')
    new.write_bytes(b'damaged')
    _age(old, seconds=60)
    compile_cache.tidy(self.caches)
    self.assertTrue(old.exists())
    self.assertFalse(new.exists())

  def test_files_used_last_stay_within_the_bound(self):
    compile_cache.tidy(self.caches)  # files that are older aren't read
    content = zlib.compress(b'')
    for i in range(8):
      file = self.caches / f'{i}-cache'
      file.write_bytes(content)
      _age(file, seconds=(i * 3) % 8)  # ages are a permutation of 0 to 7
    compile_cache.tidy(self.caches, max_bytes=8 * len(content))
    self.assertLen(list(self.caches.glob('*-cache')), 8)
    compile_cache.tidy(self.caches, max_bytes=8 * len(content) - 1)
    left = {file.name for file in self.caches.glob('*-cache')}
    # Half of the bound holds three; those with the ages 0, 1 and 2.
    self.assertEqual(left, {'0-cache', '3-cache', '6-cache'})


if __name__ == '__main__':
  absltest.main()
