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
# Makes the kernels of fused operations, in half of the time that an unoptimised
# program takes. The XLA of jaxlib 0.7 and 0.10 has a way without it; that of
# 0.12 no longer knows the flag, and ends a process that is given it.
_EMITTERS = 'xla_cpu_use_fusion_emitters'
# Modules that hold for a program however it was compiled, which with less
# effort takes a fraction of the time. Not those that compare two programs to
# the bit, or look at memory or bfloat16: that is what a compiler could break.
_HOLD_FOR_ANY_CODE = frozenset(
  (
    'analysis.oracle_test',
    'experiments.bench.optimizer_test',
    'config.config_property_test',
    'config.replayed_test',
    'docs.commands_test',
    'docs.extending_test',
    'docs.notebooks_test',
    'experiments.compare_test',
    'experiments.main_test',
    'experiments.oracle_main_test',
    'experiments.same_bits_test',
    'experiments.stress_table_test',
    'kernels.agm_test',
    'run.controlled_run_test',
    'run.faults_test',
    'run.rerun_test',
    'run.tensorboard_test',
    'run.trainer_test',
    'tasks.rewards_test',
    'training.adversarial_test',
    'training.clip_drift_test',
    'training.controls_test',
    'training.learner_test',
    'training.mechanism_test',
    'training.policy_test',
    'training.runs_at_once_test',
    'training.sharding_test',
    'training.update_test',
  )
)


@pytest.fixture(autouse=True, scope='module')
def _compiler_effort(request):
  """Compiles a module of the list, and its processes, with less effort."""
  if request.module.__name__.removeprefix('tests.') not in _HOLD_FOR_ANY_CODE:
    yield
    return
  import jax  # noqa: PLC0415

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(_QUICK, '1')
    before = jax.config.read(_QUICK.lower())
    jax.config.update(_QUICK.lower(), True)
    if jax.__version_info__ < (0, 11):
      _without_emitters(patch)
    yield
    jax.config.update(_QUICK.lower(), before)


def _without_emitters(patch):
  """For processes by XLA_FLAGS; this one's have been read already."""
  # Nothing public sets a compiler option for all that is compiled.
  from jax._src import compiler  # noqa: PLC0415

  get = compiler.get_compile_options

  def get_compile_options(*args, **kwargs):
    options = get(*args, **kwargs)
    options.env_option_overrides = [
      *options.env_option_overrides,
      (_EMITTERS, False),
    ]
    return options

  patch.setattr(compiler, 'get_compile_options', get_compile_options)
  flags = f'{os.environ.get("XLA_FLAGS", "")} --{_EMITTERS}=false'
  patch.setenv('XLA_FLAGS', flags.strip())


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Each program on CPU maps memory, of which Linux grants 65,530 pieces.

  A worker that keeps those of the whole suite dies in the compiler.
  """
  yield
  import jax  # noqa: PLC0415

  jax.clear_caches()
