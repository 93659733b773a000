"""What a person sees of a run: a bar or one line, and the closing table."""

from collections.abc import Mapping
import errno
import sys
import time
from typing import cast
from typing import TextIO

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table
from rich import text as rich_text

_PARTS = 10  # of the steps, each with a number on the one line
# Steps of a language model take minutes; rich looks back 30 s by default.
_SPEED_SECONDS = 3600.0
# Of a pipe that nobody reads any more, and of a terminal that was closed.
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)


class _Outliving:
  """Writes to a text stream while it has a reader, and else to nowhere."""

  def __init__(self, stream):
    self._stream = stream
    self._is_gone = False

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Returns the number of characters, written or lost."""
    self._try(self._stream.write, text)
    return len(text)

  def flush(self) -> None:
    """Passes on what was written."""
    self._try(self._stream.flush)

  def _try(self, action, *args):
    if self._is_gone:
      return
    try:
      action(*args)
    except OSError as error:
      if error.errno not in _GONE:
        raise
      self._is_gone = True


def outliving(stream: TextIO) -> TextIO:
  """The stream, but for losing what is written once its reader has gone."""
  if stream is None or isinstance(stream, _Outliving):
    return stream
  return cast(TextIO, _Outliving(stream))


class Progress:
  """Shows step, fields, rate and time left; a context manager.

  On a terminal this is a live bar on stderr. Elsewhere it is one line, which
  grows by the first field, or by the share that is done if that is a text.
  """

  def __init__(self, total_steps: int, what: str = 'steps'):
    """Shows nothing yet, off a terminal.

    Args:
      total_steps: at the end.
      what: these are, for the line.
    """
    self._total, self._what = total_steps, what
    self._start: int | None = None  # finished steps at the first update
    self._part = 0  # of _PARTS, the last one that the line shows
    self._is_begun = self._in_line = False
    self._began = 0.0
    self._file = outliving(sys.stderr)
    self._console = rich_console.Console(file=self._file, highlight=False)
    self._bar = _Bar(
      rich_progress.TextColumn('step {task.completed:.0f}/{task.total:.0f}'),
      rich_progress.BarColumn(bar_width=20),
      rich_progress.TimeRemainingColumn(),
      console=self._console,
      speed_estimate_period=_SPEED_SECONDS,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task('', total=total_steps, text='compiling')

  def __enter__(self):
    # Off a terminal, older versions of rich end a bar with an empty line.
    if self._console.is_terminal:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._console.is_terminal:
      self._bar.stop()
    self._end_line()

  def update(self, step: int, fields: Mapping[str, float | str]) -> None:
    """Shows the numbers of a finished step, and texts as they are."""
    is_first = self._start is None
    if is_first:
      # The first step compiles: it says nothing of the others' time.
      self._start, self._began = step, time.monotonic()
      self._part = self._part_of(step - 1)
    text = '  '.join(
      f'{name} {_shown(value)}' for name, value in fields.items()
    )
    self._bar.update(self._task, completed=step, text=text)
    if not self._console.is_terminal:
      self._lengthen(step, *next(iter(fields.items())), is_first)

  def status(self, text: str) -> None:
    """Says what goes on between two steps; on a terminal only."""
    self._bar.update(self._task, text=text)

  def note(self, text: str) -> None:
    """Prints a line, above the bar or below what there is of the line."""
    if self._console.is_terminal:
      self._console.print(text, markup=False)
    else:
      self._end_line()
      self._print(f'{text}\n')

  def _lengthen(self, step, name, value, is_first):
    """Adds to the line where a part is done; begins it once a rate is known."""
    is_text = isinstance(value, str)
    part = self._part_of(step)
    is_due = part > self._part
    begins = is_due or not (is_first or self._is_begun)
    if begins and not self._in_line:
      left = '' if is_first else f', {self._left(step)} left'
      label = '' if is_text else f' {name}'
      self._print(f'{self._total} {self._what}{left}:{label}')
      self._is_begun = self._in_line = True
    if is_due:
      self._part = part
      done = f'{100 * step // self._total}%'
      self._print(f' {done if is_text else format(value, ".2f")}')

  def _part_of(self, step):
    return _PARTS * step // self._total

  def _end_line(self):
    if self._in_line:
      self._print('\n')
    self._in_line = False

  def _left(self, step):
    seconds = (time.monotonic() - self._began) / (step - self._start)
    return duration(seconds * (self._total - step))

  def _print(self, text):
    # Rich would wrap at 80 columns where there are none.
    print(text, end='', file=self._file, flush=True)


class _Bar(rich_progress.Progress):
  """The fields on lines of their own: beside the bar 80 columns cut them."""

  def get_renderables(self):
    yield self.make_tasks_table(self.tasks)
    for task in self.tasks:
      yield rich_text.Text(task.fields['text'])


def tell(text: str) -> None:
  """Prints a line for the user where no progress is shown."""
  print(text, file=outliving(sys.stderr), flush=True)


def duration(seconds: float) -> str:
  """Seconds, minutes or hours, in two digits or more."""
  if seconds < 120:
    return f'{seconds:.0f} s'
  if seconds < 7200:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


def _shown(value):
  """Four digits, but no exponent for rates in tokens per second."""
  if isinstance(value, str):
    return value
  return f'{value:.0f}' if 1e4 <= abs(value) < 1e9 else f'{value:.4g}'


def summary_table(rows: list[tuple[str, str]]) -> None:
  """Prints the closing table, label and value, to stdout."""
  file = outliving(sys.stdout)
  console = rich_console.Console(file=file, highlight=False)
  if not console.is_terminal:
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
      print(f'{label:<{width}}  {value}', file=file)
    return
  table = rich_table.Table(show_header=False)
  for row in rows:
    table.add_row(*row)
  console.print(table)
