"""Numbers, intervals and tables as Markdown."""

from collections.abc import Iterable
import math
import re

NOTHING = '\N{EN DASH}'  # where there is no number
_UNEVEN = 1e-4  # of half an interval, beyond rounding
_MINUS = '\N{MINUS SIGN}'


def number(value: float, form: str) -> str:
  """A number in a format, with a true minus; a dash for NaN."""
  if not _is_known(value):
    return NOTHING
  text = format(value, form)
  if not re.search('[1-9]', text):
    text = text.lstrip('-')  # no sign on what is rounded to 0
  return text.replace('-', _MINUS) if 'e' not in text else text


def signed(value: float, form: str) -> str:
  """A difference, with its sign."""
  if not _is_known(value):
    return NOTHING
  text = number(value, form)
  return f'+{text}' if value > 0 and re.search('[1-9]', text) else text


def bounds(low: float, high: float, form: str, show=number) -> str:
  """An interval in words, one number for a point; says so without one."""
  if not (math.isfinite(low) and math.isfinite(high)):
    return 'no interval'
  ends = show(low, form), show(high, form)
  return ends[0] if ends[0] == ends[1] else f'{ends[0]} to {ends[1]}'


def mean_and_interval(mean: float, low: float, high: float, form: str) -> str:
  """A mean and its interval: ± half of it, or its ends where it is uneven.

  A point, as of runs that are all alike, shows the mean alone.
  """
  if not _is_known(mean):
    return NOTHING
  shown = number(mean, form)
  if not (math.isfinite(low) and math.isfinite(high)) or low == high:
    return shown
  half, off = (high - low) / 2, abs((high + low) / 2 - mean)
  if off > _UNEVEN * half:
    ends = bounds(low, high, form)
    return shown if ends == shown else f'{shown} ({ends})'
  return f'{shown} ± {number(half, form)}'


def listing(parts: Iterable[str]) -> str:
  """Names in a sentence: a, b and c."""
  *most, last = list(parts)
  return f'{", ".join(most)} and {last}' if most else last


def plural(count: int, noun: str) -> str:
  """1 run, 2 runs."""
  return f'{count} {noun}{"" if count == 1 else "s"}'


def table(header: list[str], rows: Iterable[Iterable]) -> str:
  """A Markdown table, with columns of numbers set right."""
  cells = [[escaped(str(cell)) for cell in row] for row in rows]
  marks = ['---:' if _is_numeric(column) else ':---' for column in zip(*cells)]
  marks = marks or [':---'] * len(header)
  return '\n'.join(f'| {" | ".join(row)} |' for row in [header, marks, *cells])


def escaped(text: str) -> str:
  """Text that stays in its cell of a table."""
  return text.replace('\n', ' ').replace('|', '\\|')


def p_value(p: float) -> str:
  """A p value, with no more zeros than one can read."""
  if not _is_known(p):
    return NOTHING
  return f'{p:.3f}' if p >= 0.001 else 'below 0.001'


def slug(name: str) -> str:
  """A name as a part of a file's name."""
  return re.sub(r'[^\w.=-]+', '_', name)


def _is_numeric(cells):
  """Whether cells begin with numbers, or are left blank, but not all."""
  number_or_blank = rf'[-+{_MINUS}]?\d|{NOTHING}?$|no interval$'
  return any(cells) and all(re.match(number_or_blank, c) for c in cells)


def _is_known(value):
  return value is not None and math.isfinite(value)
