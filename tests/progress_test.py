"""What a person sees off a terminal."""

import contextlib
import io

from absl.testing import absltest

from hmpo_jax import progress


class ProgressTest(absltest.TestCase):

  def test_about_twenty_plain_lines(self):
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
      with progress.Progress(200) as shown:
        for step in range(1, 201):
          shown.update(step, {'reward': step / 200, 'clip low': 0.25})
        shown.note('warning: something')
    lines = stream.getvalue().splitlines()
    self.assertLen(lines, 21)
    self.assertStartsWith(lines[0], 'step 10/200  reward 0.05  clip low 0.25  ')
    self.assertEndsWith(lines[0], ' s left')
    self.assertEqual(lines[-1], 'warning: something')
    self.assertNotIn('\x1b', stream.getvalue())

  def test_summary_is_aligned(self):
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
      progress.summary_table([('steps', '3'), ('held-out', '0.5 -> 0.9')])
    self.assertEqual(stream.getvalue(), 'steps     3\nheld-out  0.5 -> 0.9\n')


if __name__ == '__main__':
  absltest.main()
