"""Text files that are read line by line, so that a fault names its line."""

import pathlib


def read(file: pathlib.Path) -> list[str]:
  """The lines of a UTF-8 text file.

  The last one is what stands behind the last line break: '' in a whole file.

  Raises:
    OSError: the file can't be read.
    ValueError: a line is no UTF-8; names it by its number, from 1.
  """
  lines = []
  for number, line in enumerate(file.read_bytes().split(b'\n'), 1):
    try:
      lines.append(line.removesuffix(b'\r').decode())
    except UnicodeDecodeError as error:
      raise ValueError(f'line {number}: {error}') from error
  return lines
