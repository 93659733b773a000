"""What the programs in experiments/ share: flags in, one line out if bad."""

from collections.abc import Iterator
import contextlib
import difflib
import os
import re
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
import jax

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.run import checkpoint
from hmpo_jax.run import compile_cache
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import interruption
from hmpo_jax.run import progress
from hmpo_jax.run import trainer
from hmpo_jax.tasks import rewards
from hmpo_jax.training import jax_settings

BAD_INPUT = 2  # exit code
_NO_MEMORY = 'RESOURCE_EXHAUSTED'  # XLA's word for a device that is full


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Ends the program with one line where a run can't go on.

  Exit codes: 2 for bad input, for a place that can't be written and where
  memory ends, that of trainer.Stopped, and 75 for a disk that is full and for a
  signal, after which the same command resumes.
  """
  try:
    yield
  except (config_lib.ConfigError, rewards.RewardError) as error:
    refuse(error)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    text = (str(error) or 'MemoryError').splitlines()[0]
    if isinstance(error, RuntimeError) and _NO_MEMORY not in text:
      raise
    refuse(
      f'out of memory ({text}): the run folder is whole; raise '
      "config.train.num_microbatches, set config.model.remat = 'layer', "
      'or make config.rollout, config.model or config.eval smaller'
    )
  except (base.Interrupted, trainer.Stopped) as stop:
    print(f'stopped: {stop}', file=sys.stderr)
    sys.exit(stop.exit_code)
  except OSError as error:
    is_full = checkpoint.is_full(error)
    if not is_full and not isinstance(error, checkpoint.SaveError):
      refuse(error)
    remedy = 'make room' if is_full else 'mend that'
    progress.tell(
      f'error: {error}; the run folder is whole: {remedy}, then '
      'the same command resumes'
    )
    # The folder is closed; threads of orbax that failed too would still talk.
    os._exit(interruption.EXIT_CODE if is_full else BAD_INPUT)
  except KeyboardInterrupt:
    progress.tell('interrupted: the same command goes on')
    sys.exit(interruption.EXIT_CODE)


def parse(argv: list[str], *, keep_programs: bool = True) -> list[str]:
  """Parses the flags of a program, whose output may lose its reader from now.

  In their names - stands for _.

  Args:
    argv: command line, with the name of the program.
    keep_programs: whether main finds the compilation cache switched on.

  Returns:
    The arguments that are no flags.
  """
  sys.stdout, sys.stderr = map(progress.outliving, (sys.stdout, sys.stderr))
  for argument in argv[1:]:
    _refuse_place(argument)
  try:
    spelled = [*argv[:1], *map(_spelled, argv[1:])]
    rest = flags.FLAGS(spelled, known_only=True)[1:]
  except flags.Error as error:
    # Absl looks for flags that must be given before main sees the others.
    refuse(next(map(_unknown, filter(_is_stray, spelled[1:])), _missing(error)))
  if flags.FLAGS['verbosity'].using_default_value:
    # The libraries' reports of their own work would bury the run's.
    logging.set_verbosity(logging.WARNING)
  with reported():
    jax_settings.refuse()
  if keep_programs:
    # By then JAX's own flags hold, if it reads any.
    app.call_after_init(compile_cache.switch_on)
  return rest


def parse_all(argv: list[str], *, keep_programs: bool = True) -> None:
  """`parse` where nothing but flags is allowed."""
  for argument in parse(argv, keep_programs=keep_programs):
    refuse(_unknown(argument))


def override(argument: str) -> tuple[str, str]:
  """(key, text) of --config.KEY=VALUE.

  Raises:
    ConfigError: another argument.
  """
  name, equals, text = argument.partition('=')
  key = name.removeprefix('--config.')
  if key == name:
    raise config_lib.ConfigError(_unknown(argument, '--config.KEY=VALUE'))
  if not key or not equals:
    raise config_lib.ConfigError(
      f'argument {argument!r}: must be --config.KEY=VALUE'
    )
  return key, text


def _spelled(argument):
  """An argument with the underscores of the flag that it is, if it is one."""
  name, equals, text = argument.partition('=')
  flag = name.removeprefix('--').replace('-', '_')
  is_flag = name.startswith('--') and flag in flags.FLAGS
  return f'--{flag}{equals}{text}' if is_flag else argument


def _is_stray(argument):
  """Whether an argument looks like a flag and is none."""
  name = argument.removeprefix('--').partition('=')[0]
  known = (name, name.removeprefix('no'), name.partition('.')[0])
  return argument.startswith('--') and not any(
    flag in flags.FLAGS for flag in known
  )


def _missing(error):
  """An error of absl, in our words where a flag must be given."""
  flag = re.search(
    r'Flag (--\w+) must have a value other than None', str(error)
  )
  return f'{flag[1]} must be given' if flag else str(error)


def _unknown(argument, *others):
  """What to say of an argument that is no flag of the program.

  Args:
    argument: with its value.
    *others: what else the program takes.
  """
  # The module of a program has for absl the name that it was called by.
  own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  names = [f'--{flag.name}' for flag in own]
  given = argument.partition('=')[0]
  near = difflib.get_close_matches(given, names, n=1)
  key = given.removeprefix('--')
  if others and key in config_lib.flat(config_lib.default_config().to_dict()):
    near = [f'--config.{key}']
  hint = f'did you mean {near[0]}? ' if near else ''
  return (
    f'argument {argument!r}: unknown; {hint}known are '
    f'{", ".join([*names, *others])}'
  )


def _refuse_place(argument):
  """Refuses the name of a place that no run could be kept in."""
  try:
    run_folder.refuse_place(argument.partition('=')[2] or argument)
  except config_lib.ConfigError as error:
    refuse(f'argument {argument!a}: {error}')


def refuse(error: Exception | str) -> NoReturn:
  """Ends the program with one line for bad input."""
  print(f'error: {error}', file=sys.stderr)
  sys.exit(BAD_INPUT)
