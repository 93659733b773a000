"""What the programs in experiments/ share: flags in, one line out if bad."""

import sys
from typing import NoReturn

from absl import flags
from absl import logging

BAD_INPUT = 2  # exit code


def parse(argv: list[str]) -> list[str]:
  """Parses the flags of a program; returns the arguments that are no flags."""
  try:
    rest = flags.FLAGS(argv, known_only=True)[1:]
  except flags.Error as error:
    refuse(error)
  if flags.FLAGS['verbosity'].using_default_value:
    # The libraries' reports of their own work would bury the run's.
    logging.set_verbosity(logging.WARNING)
  return rest


def parse_all(argv: list[str]) -> None:
  """`parse` where nothing but flags is allowed."""
  for argument in parse(argv):
    refuse(f'argument {argument!r}: unknown')


def refuse(error: Exception | str) -> NoReturn:
  """Ends the program with one line for bad input."""
  print(f'error: {error}', file=sys.stderr)
  sys.exit(BAD_INPUT)
