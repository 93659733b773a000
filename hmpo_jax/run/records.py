"""What a run writes while it goes: JSONL, CSV, TensorBoard, and the times.

metrics.jsonl and metrics.csv hold no wall-clock value, so that equal runs give
equal bytes; those stand in timing.jsonl.
"""

from collections.abc import Mapping
import csv
import io
import json
import math
import pathlib

import ml_collections
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.config import lines as lines_lib
from hmpo_jax.run import files
from hmpo_jax.run import measured
from hmpo_jax.run import tensorboard

METRICS, TABLE, TIMING = 'metrics.jsonl', 'metrics.csv', 'timing.jsonl'
FAULTS, CONTROL = 'faults.jsonl', 'control.jsonl'
_APPENDED = (METRICS, TABLE, TIMING, FAULTS)
# Counts the values of a record that were not finite.
NONFINITE = 'nonfinite_values'
_NAMES = 'nonfinite'  # in faults.jsonl: those that were not finite

Value = bool | int | float | list


class Writer:
  """Appends one record for each step; a kill loses a part of one at most."""

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int,
    *,
    config: ml_collections.ConfigDict | None = None,
  ):
    """Opens the files of a run folder, made if missing.

    Args:
      workdir: run folder.
      step: finished steps; what the files hold of later ones is dropped, and
        so is a last line that is not whole.
      config: of the run, which TensorBoard shows; None shows none.

    Raises:
      ConfigError: a file that doesn't hold these steps, each once.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    records = _keep_until(workdir / METRICS, step)
    if len(records) != step:
      raise config_lib.ConfigError(
        f'{workdir / METRICS} holds {len(records)} of the {step} steps that '
        'the checkpoint has: put it back, or choose another --workdir'
      )
    _keep_until(workdir / TIMING, step)
    _keep_until(workdir / FAULTS, step)
    if (workdir / CONTROL).exists():
      _keep_until(workdir / CONTROL, step)
    self._workdir = workdir
    self._last: dict[str, Value] = {}
    for record in records:
      self._last |= record
    files.replace(workdir / TABLE, _table(records))
    self._columns = _columns(records[0]) if records else []
    self._files = {name: self._opened(name) for name in _APPENDED}
    moved = {name for r in records for name, value in r.items() if value}
    self._board = tensorboard.Board(
      workdir / 'tensorboard', step, config=config, moved=moved
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def last(self) -> dict[str, Value]:
    """The record of the last step; empty before the first."""
    return self._last

  def write(
    self,
    step: int,
    values: Mapping,
    timing: Mapping,
    fault: Mapping | None = None,
  ) -> None:
    """Appends the record of a step, which `last` is then, and its times.

    Args:
      step: finished steps, this one included.
      values: numbers, booleans or arrays by name, the same names each time. A
        value that is not finite is written as the last finite one of its name,
        0 if there was none, counted under `nonfinite_values` and named in
        faults.jsonl. What `tensorboard.is_for_board` is shown alone.
      timing: seconds and rates.
      fault: what else went wrong in the step, for its line of faults.jsonl,
        which is written before the record.
    """
    record: dict[str, Value] = {'step': step}
    bad = []
    shown = {}
    for name, value in values.items():
      if tensorboard.is_for_board(name):
        shown[name] = value
        continue
      record[name], is_bad = _finite(plain(value), self._last.get(name))
      bad += [name] * is_bad
    record[NONFINITE] = len(bad)
    self._last |= record
    if fault or bad:
      line = {'step': step} | dict(fault or {}) | {_NAMES: bad}
      self._append(FAULTS, _line(line))
    self._append(METRICS, _line(record))
    if not self._columns:
      self._columns = _columns(record)
      self._append(TABLE, _row(self._columns))
    self._append(TABLE, _row([record[name] for name in self._columns]))
    self._append(TIMING, _line({'step': step} | dict(timing)))
    gaps = measured.missing(record, bad)
    known = {name: v for name, v in record.items() if name not in gaps}
    self._board.show(step, known | dict(timing) | shown)

  def show(self, step: int, values: Mapping) -> None:
    """Shows values in TensorBoard that no record has: before the first step."""
    self._board.show(
      step,
      {
        name: value if tensorboard.is_for_board(name) else plain(value)
        for name, value in values.items()
      },
    )

  def write_control(self, step: int, answer: Mapping) -> None:
    """Appends what a controller answered to the record of a step."""
    if CONTROL not in self._files:
      self._files[CONTROL] = self._opened(CONTROL)
    self._append(CONTROL, _line({'step': step} | dict(answer)))

  def close(self) -> None:
    """Flushes and closes everything."""
    for file in self._files.values():
      file.close()
    self._board.close()

  def _opened(self, name):
    return (self._workdir / name).open('a', encoding='utf-8')

  def _append(self, name, text):
    self._files[name].write(text)
    self._files[name].flush()


def read(workdir: pathlib.Path) -> list[dict]:
  """The records of a run folder, of the steps 1, 2, 3, ...

  Raises:
    ConfigError: the file is damaged.
  """
  return _whole_lines(workdir / METRICS)


def read_measured(workdir: pathlib.Path) -> list[dict]:
  """`read`, with NaN for what a step did not measure: see `measured.of`.

  Raises:
    ConfigError: a file is damaged.
  """
  names = {
    fault['step']: fault.get(_NAMES, ())
    for fault in _whole_lines(workdir / FAULTS)
  }
  return [
    measured.of(record, names.get(record['step'], ()))
    for record in read(workdir)
  ]


def read_control(workdir: pathlib.Path) -> list[dict]:
  """What a controller answered, step by step; empty without one."""
  return _whole_lines(workdir / CONTROL)


def start_over(workdir: pathlib.Path, due: int) -> str:
  """Keeps what is recorded of steps that are now made from the first again.

  Args:
    workdir: run folder, of which no checkpoint can be used.
    due: step of the first checkpoint; what a kill before it has left is made
      again to the same bits and not kept.

  Returns:
    A line for the user; '' if nothing is recorded.
  """
  count = len(read(workdir))
  if not count:
    return ''
  text = f'{workdir} holds records up to step {count}'
  if count < due:
    return f'{text} and no checkpoint yet: starts over from step 1'
  return (
    f'warning: {text} but none of their checkpoints: starts over from '
    f'step 1; the records are kept in {_set_aside(workdir)}'
  )


def plain(value) -> Value:
  """Python number, boolean or flat list, with no more digits than measured."""
  array = np.asarray(value)
  if array.ndim:
    return [plain(item) for item in array.reshape(-1)]
  if array.dtype == np.float32:
    return float(str(array))
  return array.item()


def _finite(value, last):
  """The value or, where it is not finite, the last one; and whether it was."""
  if isinstance(value, list):
    known = last if isinstance(last, list) and last else [None]
    last = known[: len(value)] + known[-1:] * (len(value) - len(known))
    pairs = [_finite(item, old) for item, old in zip(value, last)]
    return [item for item, _ in pairs], any(bad for _, bad in pairs)
  if math.isfinite(value):
    return value, False
  return 0.0 if last is None else last, True


def _columns(record):
  return [name for name, value in record.items() if not isinstance(value, list)]


def _table(records):
  """The CSV text of records, with its header."""
  if not records:
    return ''
  columns = _columns(records[0])
  rows = [[record.get(name) for name in columns] for record in records]
  return ''.join(map(_row, [columns, *rows]))


def _row(cells):
  """A line of CSV; a boolean is 0 or 1: readers take the text False as true."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerow(
    int(cell) if isinstance(cell, bool) else cell for cell in cells
  )
  return text.getvalue()


def _line(record):
  return json.dumps(record, allow_nan=False) + '\n'


def _keep_until(file, step):
  """Drops the records after a step from a JSONL file; returns the others."""
  records = [record for record in _whole_lines(file) if record['step'] <= step]
  files.replace(file, ''.join(map(_line, records)))
  return records


def _whole_lines(file):
  """Records of a JSONL file, without a last line that a kill cut."""
  if not file.exists():
    return []
  try:
    *lines, _ = lines_lib.read(file)
  except ValueError as error:
    raise _damaged(str(file), error) from error
  return [_record(file, number, line) for number, line in enumerate(lines, 1)]


def _record(file, number, line):
  """What a line of a JSONL file holds."""
  try:
    record = json.loads(line, parse_constant=_refuse)
    if not isinstance(record['step'], int):
      raise TypeError('"step" is no integer')
    if file.name == CONTROL:
      _ = [change['after'] for change in record['changes']]
    if file.name == METRICS and record['step'] != number:
      raise ValueError(f'step {record["step"]}, must be {number}')
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise _damaged(f'{file}, line {number}', error) from error
  return record


def _refuse(constant):
  raise ValueError(f'{constant} is no JSON, and none of ours')


def _damaged(place, error):
  return config_lib.ConfigError(
    f'{place}: damaged ({error!r}); put it back, or choose another --workdir'
  )


def _set_aside(workdir):
  """Moves all records into a new folder beside them."""
  number = 1
  while (folder := workdir / f'earlier-{number}').exists():
    number += 1
  folder.mkdir()
  # METRICS last: while it is there, the next start moves what a kill has left.
  for name in (TABLE, TIMING, FAULTS, CONTROL, METRICS):
    if (workdir / name).exists():
      (workdir / name).rename(folder / name)
  return folder
