"""What programs say of arguments that they don't take."""

import contextlib
import io
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.run import command_line

_PROGRAM = 'program.py'


def _flags():
  """As a program has them that takes a plan, a number and a switch."""
  values = flags.FlagValues()
  for name in ('config', 'workdir'):
    flags.DEFINE_string(name, None, '', flag_values=values)
  flags.DEFINE_integer('max_runs', 1, '', flag_values=values)
  flags.DEFINE_bool('dry_run', False, '', flag_values=values)
  for name in list(values):
    values.register_key_flag_for_module(_PROGRAM, values[name])
  flags.DEFINE_integer('verbosity', 0, 'of a library', flag_values=values)
  return values


class CommandLineTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.flags = _flags()
    self.enterContext(mock.patch.object(flags, 'FLAGS', self.flags))
    self.enterContext(mock.patch.object(sys, 'argv', [_PROGRAM]))
    self.enterContext(
      mock.patch.multiple(sys, stdout=sys.stdout, stderr=sys.stderr)
    )

  def _refused(self, parse, *arguments):
    """The line with which a program ends."""
    lines = io.StringIO()
    with (
      contextlib.redirect_stderr(lines),
      self.assertRaises(SystemExit) as end,
    ):
      parse([_PROGRAM, *arguments], keep_programs=False)
    self.assertEqual(end.exception.code, 2)
    (line,) = lines.getvalue().splitlines()
    return line

  def test_dashes_and_underscores_are_alike(self):
    rest = command_line.parse(
      [_PROGRAM, '--max-runs=3', '--dry-run', '--config.x-y=1', '--other-one'],
      keep_programs=False,
    )
    self.assertEqual((self.flags.max_runs, self.flags.dry_run), (3, True))
    self.assertEqual(rest, ['--config.x-y=1', '--other-one'])

  @parameterized.parameters('--max_run=5', '--max-run=5', '--num_max_runs')
  def test_unknown_flag_names_the_nearest_and_all_of_the_program(
    self, argument
  ):
    line = self._refused(command_line.parse_all, argument)
    self.assertEqual(
      line,
      f"error: argument '{argument}': unknown; did you mean "
      '--max_runs? known are --config, --workdir, --max_runs, --dry_run',
    )

  def test_unknown_flag_is_named_before_one_that_is_missing(self):
    flags.mark_flag_as_required('workdir', flag_values=self.flags)
    self.assertIn(
      "'--workdr=x': unknown; did you mean --workdir?",
      self._refused(command_line.parse, '--workdr=x'),
    )
    for known in ('--config.loss.p=1', '--nodry_run', '--config=x'):
      self.assertEqual(
        self._refused(command_line.parse, known),
        'error: --workdir must be given',
      )

  @parameterized.parameters(
    ('--max_run=5', "'--max_run=5': unknown; did you mean --max_runs"),
    ('--loss.p=3', r'did you mean --config\.loss\.p\? .*--config\.KEY=VALUE$'),
    ('stray', "'stray': unknown; known are --config, --workdir"),
    ('--config.num_steps', 'must be --config.KEY=VALUE'),
    ('--config.=3', 'must be --config.KEY=VALUE'),
  )
  def test_what_overrides_nothing(self, argument, words):
    with self.assertRaisesRegex(config_lib.ConfigError, words):
      command_line.override(argument)

  def test_override(self):
    self.assertEqual(
      command_line.override('--config.reward.function=a=b'),
      ('reward.function', 'a=b'),
    )


if __name__ == '__main__':
  absltest.main()
