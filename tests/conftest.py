"""One compilation cache for a test session and the processes it starts."""

import atexit
import os
import shutil
import tempfile

import pytest

_CACHE = 'JAX_COMPILATION_CACHE_DIR'

# Read when jax is imported: here, in pytest's workers and in child processes.
if _CACHE not in os.environ:
  os.environ[_CACHE] = tempfile.mkdtemp(prefix='hmpo_jax_compiled_')
  atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Each program on CPU maps memory, of which Linux grants 65,530 pieces.

  A worker that keeps those of the whole suite dies in the compiler.
  """
  yield
  import jax  # pylint: disable=import-outside-toplevel
  jax.clear_caches()
