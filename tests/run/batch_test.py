"""How runs of a group come to their end."""

import types
from unittest import mock

from absl.testing import absltest

from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import failure


class EndTest(absltest.TestCase):
  def test_run_without_a_sound_update_has_failed_and_the_others_are_done(self):
    told = []
    runs = {index: mock.Mock(early_stop='') for index in range(3)}
    runs[1].finish.side_effect = failure.NumericalFault('nothing')
    # A group after its last step.
    trained = object.__new__(run_batch._Group)
    trained.__dict__.update(
      _runs=runs,
      finished=5,
      _config=types.SimpleNamespace(num_steps=5),
      _start=lambda: None,
      _tell=told.append,
    )
    trained.train(lambda: False)
    self.assertEqual(
      told,
      [
        run_batch.Report('done', 0),
        run_batch.Report('failed', 1, 'nothing', 5),
        run_batch.Report('done', 2),
      ],
    )


if __name__ == '__main__':
  absltest.main()
