"""One compilation cache for a test session and the processes it starts."""

import atexit
import os
import shutil
import tempfile

_folder = tempfile.mkdtemp(prefix='hmpo_jax_compiled_')
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
# Read when jax is imported, here and in child processes.
os.environ['JAX_COMPILATION_CACHE_DIR'] = _folder
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
