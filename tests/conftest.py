"""How a test session compiles: one cache, and no more effort than it needs."""

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

_QUICK = 'JAX_DISABLE_MOST_OPTIMIZATIONS'
# Modules that hold for a program however it was compiled, which takes half of
# the time without optimisation. Not those that compare two programs to the bit,
# or that look at memory or bfloat16: that is what optimisation could break.
_HOLD_FOR_ANY_CODE = frozenset((
    'adversarial_test',
    'config_property_test',
    'controls_test',
    'faults_test',
    'learner_test',
    'main_test',
    'mechanism_test',
    'oracle_main_test',
    'oracle_test',
    'stress_table_test',
    'update_test',
))


@pytest.fixture(autouse=True, scope='module')
def _compiler_effort(request):
  """Compiles a module of the list, and its processes, without optimisation."""
  if request.module.__name__.rpartition('.')[2] not in _HOLD_FOR_ANY_CODE:
    yield
    return
  import jax  # pylint: disable=import-outside-toplevel
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(_QUICK, '1')
    before = jax.config.read(_QUICK.lower())
    jax.config.update(_QUICK.lower(), True)
    yield
    jax.config.update(_QUICK.lower(), before)


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Each program on CPU maps memory, of which Linux grants 65,530 pieces.

  A worker that keeps those of the whole suite dies in the compiler.
  """
  yield
  import jax  # pylint: disable=import-outside-toplevel
  jax.clear_caches()
