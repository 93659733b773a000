"""Runs one configuration: main.py --config=configs/hmpo.py [--workdir=...].

Any key is overridden as --config.loss.p=-0.5. The same command on the same
folder resumes an interrupted run and prints the summary of a finished one.
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from hmpo_jax import config as config_lib
from hmpo_jax import interruption
from hmpo_jax import trainer

_BAD_INPUT = 2  # exit code

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, see configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run folder; runs/<name of the configuration> if unset.')


def main(argv: list[str]) -> None:
  """Trains, or resumes, and says so in one line where the input is bad."""
  del argv
  try:
    trainer.train(_CONFIG.value, _workdir())
  except config_lib.ConfigError as error:
    _refuse(error)
  except trainer.Stopped as stop:
    print(f'stopped: {stop}', file=sys.stderr)
    sys.exit(stop.exit_code)
  except OSError as error:
    print(
        f'error: {error}; the run folder is whole: make room, then the same '
        'command resumes',
        file=sys.stderr)
    sys.exit(interruption.EXIT_CODE)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line and validates the configuration it names."""
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS['verbosity'].using_default_value:
      # The libraries' reports of their own work would bury the run's.
      logging.set_verbosity(logging.WARNING)
    if len(rest) > 1:
      raise config_lib.ConfigError(
          f'stray argument {rest[1]!r}: every option is written --name=value')
    if flags.FLAGS.get_flag_value('help', None):
      return rest
    if _CONFIG.value is None:
      raise config_lib.ConfigError('no configuration: give one as '
                                   '--config=configs/hmpo.py')
    config_lib.validate(_CONFIG.value)
  except Exception as error:  # pylint: disable=broad-exception-caught
    # A configuration is a Python file: it can raise anything.
    _refuse(error)
  return rest


def _refuse(error: Exception) -> None:
  lines = str(error).splitlines() or [type(error).__name__]
  print(f'error: {lines[0]}', file=sys.stderr)
  sys.exit(_BAD_INPUT)


def _workdir() -> pathlib.Path:
  if _WORKDIR.value:
    return pathlib.Path(_WORKDIR.value)
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  return pathlib.Path('runs') / pathlib.Path(file.split(':')[0]).stem


if __name__ == '__main__':
  jax.config.config_with_absl()
  app.run(main, flags_parser=parse_flags)
