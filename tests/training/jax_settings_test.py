"""Settings of JAX that no run can have end a program in one line."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.run import command_line
from hmpo_jax.training import jax_settings

_ROOT = pathlib.Path(__file__).parents[2]


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('jax_debug_infs', True),
    ('jax_debug_nans', True),
    ('jax_numpy_rank_promotion', 'raise'),
    ('jax_numpy_dtype_promotion', 'strict'),
    ('jax_transfer_guard', 'disallow'),
    ('jax_transfer_guard', 'disallow_explicit'),
    ('jax_enable_x64', True),
  )
  def test_is_named_with_what_is_allowed(self, name, value):
    before = getattr(jax.config, name)
    self.addCleanup(jax.config.update, name, before)
    jax_settings.refuse()
    jax.config.update(name, value)
    with self.assertRaisesRegex(
      config_lib.ConfigError, f'^{name.upper()} = {value}: must be '
    ):
      jax_settings.refuse()

  @parameterized.parameters(
    ('jax_numpy_rank_promotion', 'warn'), ('jax_transfer_guard', 'log')
  )
  def test_a_warning_is_allowed(self, name, value):
    self.addCleanup(jax.config.update, name, getattr(jax.config, name))
    jax.config.update(name, value)
    jax_settings.refuse()

  def test_a_platform_that_is_not_there_ends_in_one_line(self):
    result = subprocess.run(
      [
        sys.executable,
        _ROOT / 'experiments' / 'main.py',
        f'--config={_ROOT}/configs/smoke.py',
        '--workdir=/nowhere/run',
      ],
      env=os.environ | {'JAX_PLATFORMS': 'cuda', 'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 2)
    self.assertRegex(
      result.stderr,
      '^error: JAX_PLATFORMS = cuda: must name a platform of this machine.*\n$',
    )


class MemoryTest(absltest.TestCase):
  def _ends(self, function):
    with self.assertRaises(SystemExit) as end, command_line.reported():
      function()
    self.assertEqual(end.exception.code, 2)

  def test_a_full_device_is_bad_input(self):
    self._ends(lambda: jax.block_until_ready(jnp.zeros(2**50, jnp.uint8)))

  def test_a_full_host_is_bad_input(self):
    self._ends(lambda: np.zeros(2**60, np.uint8))

  def test_other_faults_of_the_runtime_stay(self):
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'INTERNAL'):
      with command_line.reported():
        raise jax.errors.JaxRuntimeError('INTERNAL: other')


if __name__ == '__main__':
  absltest.main()
