"""What a person sees, on a terminal and off it."""

import contextlib
import io
import os
import re
from unittest import mock

from absl.testing import absltest

from hmpo_jax import progress

_ESCAPE = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')


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

  def test_first_line_knows_no_rate_and_shows_no_exponent(self):
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
      with progress.Progress(4) as shown:
        shown.update(1, {'tokens/s': 12345.6, 'sampler': 'stale'})
    self.assertEqual(stream.getvalue(),
                     'step 1/4  tokens/s 12346  sampler stale\n')

  @mock.patch.dict(os.environ, {
      'FORCE_COLOR': '1',
      'TERM': 'xterm',
      'COLUMNS': '80'
  })
  def test_terminal_of_80_columns_cuts_nothing(self):
    fields = {'reward': 0.51234, 'held-out': 0.5, 'clip low': 0.25}
    fields |= {'clip high': 0.125, 'max logit': 12.345, 'tokens/s': 12345.6}
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
      with progress.Progress(300) as shown:
        shown.update(7, fields)
        shown.note('warning: [brackets] stay')
    text = _ESCAPE.sub('', stream.getvalue())
    self.assertIn('warning: [brackets] stay\n', text)
    self.assertNotIn('…', text)
    last = text.rsplit('step 7/300 ', 1)[1]
    self.assertIn('reward 0.5123  held-out 0.5', last)
    self.assertIn('tokens/s 12346', ' '.join(last.split()))

  def test_summary_is_aligned(self):
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
      progress.summary_table([('steps', '3'), ('held-out', '0.5 -> 0.9')])
    self.assertEqual(stream.getvalue(), 'steps     3\nheld-out  0.5 -> 0.9\n')


if __name__ == '__main__':
  absltest.main()
