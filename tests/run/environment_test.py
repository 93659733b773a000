"""What decides a run's bits beside its configuration."""

import os
from unittest import mock

from absl.testing import absltest
import jax

from hmpo_jax.run import environment


class SettingsTest(absltest.TestCase):
  def test_threads_are_those_that_xla_takes(self):
    cpus = len(os.sched_getaffinity(0))
    for granted, count in (('', cpus), ('1', 1), ('7', 7), ('many', cpus)):
      with mock.patch.dict(os.environ, NPROC=granted):
        self.assertEqual(environment.settings()['cpu_threads'], str(count))

  def test_settings_name_what_is_not_compiled(self):
    self.assertEqual(environment.settings()['jax_disable_jit'], 'False')
    with jax.disable_jit():
      self.assertEqual(environment.settings()['jax_disable_jit'], 'True')


if __name__ == '__main__':
  absltest.main()
