"""The files and tables of a suite's rows, and the traces of its cases."""

import csv
import json
import os
import pathlib
import platform
import re

import jax
from rich import console as rich_console
from rich import table as rich_table

from experiments.bench import profile
from experiments.bench import timing
from hmpo_jax.run import folder as run_folder

_SLOWEST = 10  # operations of a trace that are printed
# Columns of a printed table, and the fields of a row that stand there.
_COLUMNS = {
  'variant': ('variant',),
  'mode': ('mode',),
  'ms': ('ms', 'ms_spread'),
  'ratio': ('ratio', 'ratio_spread'),
  'to trl': ('to_trl', 'to_trl_spread'),
  'to tunix': ('to_tunix', 'to_tunix_spread'),
  'to the faster': ('to_faster', 'to_faster_spread'),
  'tokens/s': ('tokens_per_s',),
  'GFLOP/s': ('gflops_per_s',),
  'of limit': ('of_limit',),
  'compile s': ('compile_s',),
  'temporary MB': ('temporary_mb',),
  'output MB': ('output_mb',),
  'peak MB': ('peak_mb',),
}


def describe(name: str, options: timing.Options, more: dict) -> dict:
  """What the rows hold for: versions, device, commit and load; JSON values.

  Args:
    name: of the suite.
    options: what is timed.
    more: versions of what is timed beside the project.
  """
  run_of = run_folder.describe(options.config)
  return {
    'suite': name,
    'commit': run_of['commit'],
    'device': run_of['device'],
    'platform': jax.default_backend(),
    'cores': os.cpu_count(),
    'versions': run_of['versions'] | {'python': platform.python_version()},
    **more,
    'limits': options.limits and options.limits._asdict(),
    'rounds': options.rounds,
    'load_before': os.getloadavg(),
  }


def claim(folder: str, suite: str) -> None:
  """Makes the files of a suite; OSError before minutes of timing, not after."""
  for file in files(pathlib.Path(folder), suite):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.open('a', encoding='utf-8').close()


def files(folder: pathlib.Path, suite: str) -> tuple[pathlib.Path, ...]:
  """Paths of a suite's JSON and CSV."""
  return folder / f'{suite}.json', folder / f'{suite}.csv'


def write(folder: pathlib.Path, about: dict, rows: list[timing.Row]) -> None:
  """Writes both files of a suite; the folder is made if missing."""
  folder.mkdir(parents=True, exist_ok=True)
  everything, table = files(folder, about['suite'])
  records = [row._asdict() for row in rows]
  text = json.dumps(about | {'rows': records}, indent=2)
  everything.write_text(f'{text}\n', encoding='utf-8')
  with open(table, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, fieldnames=timing.Row._fields)
    writer.writeheader()
    writer.writerows(records)


def show(about: dict, rows: list[timing.Row]) -> None:
  """Prints one table for each group."""
  console = _console()
  console.print(' '.join(f'{key}={value}' for key, value in about.items()))
  for shape in dict.fromkeys(row.shape for row in rows):
    console.print(_table(shape, [row for row in rows if row.shape == shape]))


def trace(folder: str, suite: str, shape: str, case: timing.Case) -> None:
  """Traces one call of a case and prints which operations took longest.

  Args:
    folder: where the trace's own folder is made, of the names of suite, group
      and case.
    suite: name.
    shape: name of the group.
    case: what to call; nothing is done if another process runs it.
  """
  if not case.is_here:
    return
  names = suite, shape, case.variant, case.mode
  name = re.sub(r'[^\w.=-]+', '_', '-'.join(names))
  into = pathlib.Path(folder) / name
  with profile.trace(into):
    case.seconds(1)
  print(f'traced to {into}')
  table = rich_table.Table('operation', 'calls', 'ms')
  for operation in profile.slowest(into, _SLOWEST):
    table.add_row(
      operation.name, str(operation.calls), f'{operation.milliseconds:.2f}'
    )
  _console().print(table)


def _console():
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    console.width = 220
  return console


def _table(shape, rows):
  """A table of the columns that hold anything."""
  columns = {
    title: [_cell(*(getattr(row, field) for field in fields)) for row in rows]
    for title, fields in _COLUMNS.items()
  }
  columns = {title: cells for title, cells in columns.items() if any(cells)}
  table = rich_table.Table(*columns, title=shape)
  for cells in zip(*columns.values()):
    table.add_row(*cells)
  return table


def _cell(value, spread=None):
  if value is None or isinstance(value, str):
    return value or ''
  if spread is None:
    return f'{value:.2f}'
  return f'{value:.3f} ± {spread:.3f}'
