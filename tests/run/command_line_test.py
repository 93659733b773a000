"""How programs end where a run can't go on, and what they refuse at once."""

import contextlib
import errno
import io
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.run import checkpoint
from hmpo_jax.run import command_line


def _caused(cause):
  error = checkpoint.SaveError('checkpoint not written: a reason')
  error.__cause__ = cause
  return error


class CommandLineTest(parameterized.TestCase):
  def _end(self, action):
    """(exit code, what stderr holds) of a program."""
    errors = io.StringIO()
    with (
      contextlib.redirect_stderr(errors),
      mock.patch.object(os, '_exit', side_effect=SystemExit) as at_once,
      self.assertRaises(SystemExit) as ended,
    ):
      action()
    code = at_once.call_args.args[0] if at_once.called else ended.exception.code
    return code, errors.getvalue()

  @parameterized.parameters(
    (OSError(errno.ENOSPC, 'full'), 75, 'make room, then'),
    (OSError(errno.EDQUOT, 'quota'), 75, 'make room, then'),
    (_caused(OSError(errno.ENOSPC, 'full')), 75, 'make room, then'),
    (_caused(OSError(errno.EACCES, 'denied')), 2, 'mend that, then'),
    (OSError(errno.EROFS, 'read only', 'run/.lock'), 2, 'run/.lock'),
    (config_lib.ConfigError('a value'), 2, 'error: a value'),
    (KeyboardInterrupt(), 75, 'interrupted'),
  )
  def test_ends_in_one_line(self, fault, code, words):

    def program():
      with command_line.reported():
        raise fault

    found, text = self._end(program)
    self.assertEqual(found, code)
    self.assertIn(words, text)
    self.assertEqual(text.count('\n'), 1)
    self.assertEqual('make room' in text, code == 75 and 'room' in words)

  @parameterized.parameters(
    '--workdir=gs://bucket/run',
    's3://bucket/run',
    '--config.task.prompts=runs/\udcff.jsonl',
  )
  def test_refuses_places_before_all_else(self, argument):
    code, text = self._end(lambda: command_line.parse(['main.py', argument]))
    self.assertEqual(code, 2)
    self.assertStartsWith(text, f'error: argument {argument!a}: ')
    self.assertEqual(text.count('\n'), 1)


if __name__ == '__main__':
  absltest.main()
