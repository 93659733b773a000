"""What a person sees, on a terminal and off it."""

import contextlib
import errno
import io
import os
import re
from unittest import mock

from absl.testing import absltest

from hmpo_jax.run import progress

_ESCAPE = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')


class ProgressTest(absltest.TestCase):
  def _shown(self, total, steps, fields, note_at=None, what='steps'):
    """What stderr holds after updates, off a terminal; each takes a second."""
    stream = io.StringIO()
    with (
      contextlib.redirect_stderr(stream),
      mock.patch.object(progress.time, 'monotonic', lambda: float(step)),
    ):
      with progress.Progress(total, what) as shown:
        shown.status('compiling')
        for step in steps:
          shown.update(step, fields(step))
          if step == note_at:
            shown.note('warning: something')
    return stream.getvalue()

  def test_one_line_of_79_columns(self):
    text = self._shown(
      300, range(1, 301), lambda step: {'reward': step / 300, 'clip low': 0.25}
    )
    self.assertEqual(
      text,
      '300 steps, 5 min left: reward 0.10 0.20 0.30 0.40 0.50 0.60 0.70 '
      '0.80 0.90 1.00\n',
    )
    self.assertLen(text, 80)

  def test_line_begins_before_its_first_number(self):
    text = self._shown(300, [1, 2], lambda _: {'reward': 0.5})
    self.assertEqual(text, '300 steps, 5 min left: reward\n')

  def test_first_step_knows_no_rate(self):
    self.assertEqual(
      self._shown(1, [1], lambda _: {'reward': 0.5}), '1 steps: reward 0.50\n'
    )

  def test_resumed_run_shows_what_is_new(self):
    text = self._shown(20, [15, 16, 17, 18], lambda _: {'reward': 0.5})
    self.assertEqual(text, '20 steps, 4 s left: reward 0.50 0.50\n')

  def test_runs_of_a_plan_show_their_share(self):
    text = self._shown(
      720,
      range(6, 721, 6),
      lambda step: {'runs': '12 going'},
      None,
      'steps of 12 runs',
    )
    self.assertEqual(
      text,
      '720 steps of 12 runs, 12 min left: 10% 20% 30% 40% 50% 60% 70% '
      '80% 90% 100%\n',
    )

  def test_note_has_a_line_of_its_own(self):
    text = self._shown(10, range(1, 11), lambda _: {'reward': 0.5}, note_at=8)
    first, note, last = text.splitlines()
    self.assertStartsWith(first, '10 steps: reward 0.50 ')
    self.assertEqual(note, 'warning: something')
    self.assertEqual(last, '10 steps, 1 s left: reward 0.50 0.50')

  def test_durations(self):
    self.assertEqual(
      [progress.duration(s) for s in (119, 120, 7199, 9000)],
      ['119 s', '2 min', '120 min', '2.5 h'],
    )

  @mock.patch.dict(
    os.environ, {'FORCE_COLOR': '1', 'TERM': 'xterm', 'COLUMNS': '80'}
  )
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

  def test_number_of_the_bar_has_no_exponent(self):
    self.assertEqual(progress._shown(12345.6), '12346')


class OutlivingTest(absltest.TestCase):
  def _pipe_without_reader(self):
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, 'w')

  def test_what_nobody_reads_is_lost(self):
    stream = self._pipe_without_reader()
    with self.assertRaises(BrokenPipeError):
      print('lost', file=stream, flush=True)
    outliving = progress.outliving(stream)
    for _ in range(2):
      print('lost', file=outliving, flush=True)
    self.assertIs(progress.outliving(outliving), outliving)
    self.assertEqual(outliving.encoding, stream.encoding)
    with self.assertRaises(BrokenPipeError):
      stream.close()

  def test_terminal_that_was_closed(self):
    stream = mock.Mock()
    stream.write.side_effect = OSError(errno.EIO, 'gone')
    print('lost', file=progress.outliving(stream))
    stream.write.assert_called_once()

  def test_full_disk_is_told(self):
    stream = mock.Mock()
    stream.write.side_effect = OSError(errno.ENOSPC, 'full')
    with self.assertRaisesRegex(OSError, 'full'):
      print('kept', file=progress.outliving(stream))

  def test_progress_and_table_go_on(self):
    with contextlib.redirect_stderr(self._pipe_without_reader()) as errors:
      with progress.Progress(2) as shown:
        shown.update(1, {'reward': 0.5})
        shown.note('warning: something')
        shown.update(2, {'reward': 0.5})
      progress.tell('a line')
    with contextlib.redirect_stdout(self._pipe_without_reader()) as output:
      progress.summary_table([('label', 'value')])
    for stream in (errors, output):
      with contextlib.suppress(BrokenPipeError):
        stream.close()


if __name__ == '__main__':
  absltest.main()
