"""How a row of the table of keys is written.

A row is what there is to say of one key: its default, which values it may have,
who reads it, and what it means with its unit.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

from hmpo_jax.kernels import agm

# What takes the value of a key, and so what runs that differ in it share.
ROLES = {
  'static': 'the compiler; runs that differ in it run different programs',
  'traced': 'the program, as an input; runs that differ in it share one',
  'loop': 'the loop around the program, which stays the same',
  'switch': 'the loop, and the compiler whether it is above 0',
}


class Range(NamedTuple):
  """The values that a key may have, beyond those of its default's type."""

  holds: Callable[[Any], bool]
  words: str  # what must hold, after "must be"


class Row(NamedTuple):
  """One key."""

  default: bool | int | float | str  # its type is that of every value
  allowed: Range
  role: str  # key of ROLES
  meaning: str  # with the unit


class Section(NamedTuple):
  """The keys that share the first part of their name."""

  meaning: str  # whole sentences
  rows: dict[str, Row]  # by the last part of the name


def section(meaning: str, **rows: Row) -> Section:
  """Rows by the last part of their key's name, in their order."""
  return Section(meaning, rows)


def static(default, allowed: Range, meaning: str) -> Row:
  """A key that decides which program is compiled."""
  return Row(default, allowed, 'static', meaning)


def traced(default, allowed: Range, meaning: str) -> Row:
  """A key whose value is an input of the program, see `traced.hparams`."""
  return Row(default, allowed, 'traced', meaning)


def loop(default, allowed: Range, meaning: str) -> Row:
  """A key that the loop around the program reads."""
  return Row(default, allowed, 'loop', meaning)


def switch(default, allowed: Range, meaning: str) -> Row:
  """A key of the loop that switches a part of the program on, above 0."""
  return Row(default, allowed, 'switch', meaning)


def at_least(low: int) -> Range:
  """No upper bound but that of int32."""
  return Range(lambda x: low <= x, f'at least {low}')


def finite_at_least(low: float) -> Range:
  """From a bound on, without infinity."""
  return Range(lambda x: low <= x < math.inf, f'finite and at least {low}')


def from_to(low: int, high: int) -> Range:
  """Between two bounds, which are allowed."""
  return Range(lambda x: low <= x <= high, f'from {low} to {high}')


def one_of(*choices: str | int) -> Range:
  """A choice."""
  return Range(lambda x: x in choices, f'one of {", ".join(map(str, choices))}')


FLAG = Range(lambda x: True, 'True or False')
# What a text names is looked for when a run starts.
FILE = Range(lambda x: True, 'the path of a file, or empty')
FOLDER = Range(lambda x: True, 'the path of a folder, or empty')
FUNCTION = Range(lambda x: True, 'module:name or file.py:name, or empty')

POSITIVE = Range(lambda x: 0 < x < math.inf, 'finite and above 0')
POSITIVE_OR_INF = Range(lambda x: x > 0, 'above 0 (inf = off)')
FINITE = Range(math.isfinite, 'finite')
ORDER_OR_INF = Range(lambda x: x > -math.inf, 'finite (inf = loss.p)')
UNIT = from_to(0, 1)
BELOW_ONE = Range(lambda x: 0 <= x < 1, 'at least 0 and below 1')
SECONDS = Range(lambda x: 0 < x <= 1e6, 'above 0 and at most 1e6 seconds')
ITERATIONS = from_to(1, agm.MAX_ITERATIONS)
# A narrower clip range is one of rounding. In float32 1e-6 is a little less.
NARROWEST = 9.999e-7
WIDTH = Range(lambda x: NARROWEST <= x < 1, 'at least 1e-6 and below 1')
