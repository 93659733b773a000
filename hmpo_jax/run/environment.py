"""What decides the bits of a run beside its configuration, and who made them."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

import jax

_JAX_SETTINGS = (
  'jax_default_matmul_precision',
  'jax_disable_jit',
  'jax_threefry_partitionable',
)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def settings() -> dict[str, str]:
  """What else decides a run's bits: the platform and settings of JAX."""
  backend = jax.default_backend()
  threads = {'cpu_threads': str(cpu_threads())} if backend == 'cpu' else {}
  return (
    {'platform': backend, 'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')}
    | threads
    | {name: str(getattr(jax.config, name)) for name in _JAX_SETTINGS}
  )


def cpu_threads() -> int:
  """Threads that XLA spreads an operation over; sums are split by them.

  As XLA counts: what the variable NPROC says, else the CPUs that this process
  may use, and one for each device at least.
  """
  granted = os.environ.get('NPROC', '')
  if granted.isdigit():
    count = int(granted)
  elif hasattr(os, 'sched_getaffinity'):
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  return max(count, jax.local_device_count())


def cpu() -> str:
  """Model of the CPU, whose vector units too decide how sums are split."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
  except OSError:  # not Linux
    text = ''
  model = re.search(r'^model name\s*:\s*(.+)$', text, re.M)
  return model[1] if model else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
  """Versions of the packages that decide a run's bits."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def commit() -> str:
  """Commit of the source tree; 'unknown' if installed, or without git."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return 'unknown'  # git would name the commit of a folder around it
  try:
    result = subprocess.run(
      ['git', '-C', str(root), 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
      check=False,
    )
  except FileNotFoundError:
    return 'unknown'
  return result.stdout.strip() or 'unknown'
