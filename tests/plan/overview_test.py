"""What is shown of a plan's runs while they go on."""

from unittest import mock

from absl.testing import absltest

from hmpo_jax.plan import overview


class OverviewTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.progress = mock.Mock()
    ways = {name: overview.Way(0, 60) for name in 'abcd'}
    self.overview = overview.Overview(self.progress, ways)

  def _status(self):
    return self.progress.status.call_args.args[0]

  def test_says_what_every_run_does(self):
    self.overview.started('ab')
    self.assertEqual(self._status(), 'runs 2 compiling, 2 waiting')
    self.overview.step('ab', 31)
    self.progress.update.assert_called_with(
      62, {'runs': '2 at step 31, 2 waiting'}
    )
    self.overview.started('cd')
    self.overview.step('cd', 1)
    self.progress.update.assert_called_with(64, {'runs': '4 at step 1 to 31'})
    self.overview.ended('b', overview.DONE)
    self.overview.ended('c', overview.FAILED)
    self.assertEqual(self._status(), 'runs 1 done, 1 failed, 2 at step 1 to 31')
    self.overview.step('cd', 2)  # the failed one is no part of it
    self.progress.update.assert_called_with(
      31 + 60 + 60 + 2, {'runs': '1 done, 1 failed, 2 at step 2 to 31'}
    )

  def test_says_what_an_end_waits_for(self):
    self.overview.started('abc')
    self.overview.step('a', 1)
    self.assertEqual(
      self.overview.before_end(),
      'a step of 3 runs, to be saved; 2 of them '
      'compile first, which takes up to minutes',
    )
    self.overview.step('bc', 1)
    self.assertEqual(
      self.overview.before_end(), 'a step of 3 runs, to be saved'
    )

  def test_runs_that_resume_count_what_they_have(self):
    self.overview = overview.Overview(
      self.progress, {'a': overview.Way(30, 60)}
    )
    self.overview.started('a')
    self.overview.step('a', 31)
    self.progress.update.assert_called_with(31, {'runs': '1 at step 31'})


if __name__ == '__main__':
  absltest.main()
