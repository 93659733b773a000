"""What the programs in experiments/ share: flags in, one line out if bad."""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging

from hmpo_jax import checkpoint
from hmpo_jax import compile_cache
from hmpo_jax import config as config_lib
from hmpo_jax import interruption
from hmpo_jax import progress
from hmpo_jax import trainer
from hmpo_jax.tasks import reward

BAD_INPUT = 2  # exit code
# Errors of a disk that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Ends the program with one line where a run can't go on.

  Exit codes: 2 for bad input, that of trainer.Stopped, and 75 for a disk that
  is full or a checkpoint that can't be saved, after which the same command
  resumes.
  """
  try:
    yield
  except (config_lib.ConfigError, reward.RewardError) as error:
    refuse(error)
  except trainer.Stopped as stop:
    print(f'stopped: {stop}', file=sys.stderr)
    sys.exit(stop.exit_code)
  except OSError as error:
    if not isinstance(error, checkpoint.SaveError) and error.errno not in _FULL:
      refuse(error)
    print(
        f'error: {error}; the run folder is whole: make room, then the same '
        'command resumes',
        file=sys.stderr,
        flush=True)
    # The folder is closed; threads of orbax that failed too would still talk.
    os._exit(interruption.EXIT_CODE)  # pylint: disable=protected-access


def parse(argv: list[str], *, keep_programs: bool = True) -> list[str]:
  """Parses the flags of a program, whose output may lose its reader from now.

  Args:
    argv: command line, with the name of the program.
    keep_programs: whether main finds the compilation cache switched on.

  Returns:
    The arguments that are no flags.
  """
  sys.stdout, sys.stderr = map(progress.outliving, (sys.stdout, sys.stderr))
  try:
    rest = flags.FLAGS(argv, known_only=True)[1:]
  except flags.Error as error:
    refuse(error)
  if flags.FLAGS['verbosity'].using_default_value:
    # The libraries' reports of their own work would bury the run's.
    logging.set_verbosity(logging.WARNING)
  if keep_programs:
    # By then JAX's own flags hold, if it reads any.
    app.call_after_init(compile_cache.switch_on)
  return rest


def parse_all(argv: list[str], *, keep_programs: bool = True) -> None:
  """`parse` where nothing but flags is allowed."""
  for argument in parse(argv, keep_programs=keep_programs):
    refuse(f'argument {argument!r}: unknown')


def override(argument: str) -> tuple[str, str]:
  """(key, text) of --config.KEY=VALUE.

  Raises:
    ConfigError: another argument.
  """
  name, equals, text = argument.partition('=')
  key = name.removeprefix('--config.')
  if key in ('', name) or not equals:
    raise config_lib.ConfigError(
        f'argument {argument!r}: must be --config=FILE, --workdir=FOLDER or '
        '--config.KEY=VALUE')
  return key, text


def refuse(error: Exception | str) -> NoReturn:
  """Ends the program with one line for bad input."""
  print(f'error: {error}', file=sys.stderr)
  sys.exit(BAD_INPUT)
