"""How long parts of the project take, against the simplest form of each.

  python experiments/bench.py --suite=kernels
  python experiments/bench.py --suite=logprobs
  python experiments/bench.py --suite=optimizer --torch_python=PATH
  python experiments/bench.py --suite=attention

writes SUITE.csv and SUITE.json to results/bench and prints the tables. What a
suite times stands at the top of its module in hmpo_jax/bench/, how it is timed
in hmpo_jax/bench/timing.py. Times hold for a machine that does nothing else:
see the load average beside them. On two cores `kernels` takes about 3 minutes.

`optimizer` times torch's Muon beside the others where torch can be imported, or
where --torch_python names an interpreter that can import it.
"""

import csv
import functools
import json
import os
import pathlib
import re
import sys

from absl import app
from absl import flags
import jax
from rich import console as rich_console
from rich import table as rich_table

from hmpo_jax import command_line
from hmpo_jax import config as config_lib
from hmpo_jax import run_folder
from hmpo_jax.bench import attention
from hmpo_jax.bench import kernels
from hmpo_jax.bench import logprobs
from hmpo_jax.bench import optimizer
from hmpo_jax.bench import timing
from hmpo_jax.bench import torch_muon

SUITES = {
    'kernels': kernels.SUITE,
    'attention': attention.SUITE,
    'logprobs': logprobs.SUITE,
    'optimizer': optimizer.SUITE,
}

_SUITE = flags.DEFINE_enum('suite', 'kernels', list(SUITES), 'What to time.')
_OUT = flags.DEFINE_string('out', 'results/bench', 'Folder of the results.')
_ROUNDS = flags.DEFINE_integer(
    'rounds', None, 'Rounds; by default those of the suite.', lower_bound=2)
_SHAPES = flags.DEFINE_list(
    'shapes', None, 'By default those of the suite: '
    f'{"; ".join(",".join(suite.shapes) for suite in SUITES.values())}.')
_VARIANTS = flags.DEFINE_string('variants', '.*',
                                'Regular expression of those to time.')
_TORCH_PYTHON = flags.DEFINE_string(
    'torch_python', None, 'Interpreter with torch; by default the running one.')

# Columns of a printed table, and the fields of a row that stand there.
_COLUMNS = {
    'variant': ('variant',),
    'mode': ('mode',),
    'ms': ('ms', 'ms_spread'),
    'ratio': ('ratio', 'ratio_spread'),
    'GFLOP/s': ('gflops_per_s',),
    'compile s': ('compile_s',),
    'temporary MB': ('temporary_mb',),
    'output MB': ('output_mb',),
}


def main(_) -> None:
  """Runs a suite, writes its files and prints its tables."""
  suite = SUITES[_SUITE.value]
  with command_line.reported():
    _check_flags(suite)
    options = timing.Options(
        shapes=_shapes(suite),
        rounds=_ROUNDS.value or suite.rounds,
        config=config_lib.default_config(),
        variants=_VARIANTS.value,
        torch_python=_TORCH_PYTHON.value)
    about = {}
    if suite.has_torch:
      options, about = _with_torch(options)
  run(_SUITE.value, options, pathlib.Path(_OUT.value), about)


def run(name: str, options: timing.Options, out: pathlib.Path,
        about_torch: dict) -> list[timing.Row]:
  """Times a suite and writes its results.

  Args:
    name: of the suite.
    options: what to time; a baseline always is.
    out: folder, made if missing.
    about_torch: from `torch_muon.describe`, {} without torch.
  """
  run_of = run_folder.describe(options.config)
  about: dict = {
      'suite': name,
      'commit': run_of['commit'],
      'jax': jax.__version__,
      'device': run_of['device'],
      'cores': os.cpu_count(),
      **about_torch,
      'rounds': options.rounds,
      'load_before': os.getloadavg(),
  }
  rows = SUITES[name].measure(options)
  about['load_after'] = os.getloadavg()
  _write(out, about, rows)
  _print(about, rows)
  return rows


def _with_torch(options):
  """The options with an interpreter that has torch, and what torch that is."""
  python = options.torch_python or sys.executable
  try:
    about = torch_muon.describe(python)
  except OSError as error:
    if options.torch_python:
      raise config_lib.ConfigError(
          f'--torch_python={python}: {error}') from error
    _tell(f'torch\'s Muon is left out ({error}): see --torch_python')
    return options, {}
  if about['torch_threads'] != os.cpu_count():
    _tell(f'torch uses {about["torch_threads"]} threads on {os.cpu_count()} '
          'cores, JAX all of them: their times don\'t compare')
  return options._replace(torch_python=python), about


def _tell(message):
  print(f'bench: {message}', file=sys.stderr)


def _files(out, suite):
  return out / f'{suite}.json', out / f'{suite}.csv'


def _write(out, about, rows):
  out.mkdir(parents=True, exist_ok=True)
  everything, table = _files(out, about['suite'])
  records = [row._asdict() for row in rows]
  text = json.dumps(about | {'rows': records}, indent=2)
  everything.write_text(f'{text}\n', encoding='utf-8')
  with open(table, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, fieldnames=timing.Row._fields)
    writer.writeheader()
    writer.writerows(records)


def _print(about, rows):
  """One table for each group."""
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    console.width = 120
  console.print(' '.join(f'{key}={value}' for key, value in about.items()))
  for shape in dict.fromkeys(row.shape for row in rows):
    console.print(_table(shape, [row for row in rows if row.shape == shape]))


def _table(shape, rows):
  """A table of the columns that hold anything."""
  columns = {
      title: [
          _cell(*(getattr(row, field) for field in fields)) for row in rows
      ] for title, fields in _COLUMNS.items()
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


def _check_flags(suite):
  """Before minutes of timing, not after."""
  pattern = _VARIANTS.value
  names = list(suite.variants())
  try:
    found = any(re.fullmatch(pattern, name) for name in names)
  except re.error as error:
    raise config_lib.ConfigError(f'--variants={pattern}: {error}') from error
  if not found:
    raise config_lib.ConfigError(f'--variants={pattern}: must match one of '
                                 f'{", ".join(names)}')
  if _TORCH_PYTHON.value is not None and not suite.has_torch:
    raise config_lib.ConfigError(f'--torch_python={_TORCH_PYTHON.value}: '
                                 f'--suite={_SUITE.value} times no torch')
  try:
    for file in _files(pathlib.Path(_OUT.value), _SUITE.value):
      file.parent.mkdir(parents=True, exist_ok=True)
      file.open('a', encoding='utf-8').close()
  except OSError as error:
    raise config_lib.ConfigError(f'--out={_OUT.value}: {error}') from error


def _shapes(suite):
  texts = suite.shapes if _SHAPES.value is None else _SHAPES.value
  if not texts:
    raise config_lib.ConfigError(
        f'--shapes=: must be as {",".join(suite.shapes)}')
  return [_parse_shape(text, like=suite.shapes[0]) for text in texts]


def _parse_shape(text, like):
  """The numbers of a text as 64x1024, as many as in `like`."""
  sizes = text.split('x')
  if len(sizes) != len(like.split('x')) or not all(
      size.isdecimal() and int(size) > 0 for size in sizes):
    raise config_lib.ConfigError(f'--shapes={text}: must be as {like}')
  return tuple(int(size) for size in sizes)


if __name__ == '__main__':
  # Compile times are to be those of compiling.
  app.run(
      main,
      flags_parser=functools.partial(
          command_line.parse_all, keep_programs=False))
