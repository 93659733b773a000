"""What a person sees of a run: a bar or plain lines, and the closing table."""

from collections.abc import Mapping
import sys
import time

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table
from rich import text as rich_text

# Off a terminal: one line each time this share of the steps is done.
_LINES = 20
# Steps of a language model take minutes; rich looks back 30 s by default.
_SPEED_SECONDS = 3600.


class Progress:
  """Shows step, fields, rate and time left; a context manager.

  On a terminal this is a live bar on stderr, elsewhere about 20 plain lines.
  """

  def __init__(self, total_steps: int):
    self._total = total_steps
    self._start: int | None = None  # finished steps at the first update
    self._every = max(1, total_steps // _LINES)
    self._began = 0.
    self._console = rich_console.Console(stderr=True, highlight=False)
    self._bar = _Bar(
        rich_progress.TextColumn('step {task.completed:.0f}/{task.total:.0f}'),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TimeRemainingColumn(),
        console=self._console,
        speed_estimate_period=_SPEED_SECONDS,
        disable=not self._console.is_terminal)
    self._task = self._bar.add_task('', total=total_steps, text='compiling')

  def __enter__(self):
    # Off a terminal, older versions of rich end a bar with an empty line.
    if self._console.is_terminal:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._console.is_terminal:
      self._bar.stop()

  def update(self, step: int, fields: Mapping[str, float | str]) -> None:
    """Shows the numbers of a finished step, and texts as they are."""
    if self._start is None:
      # The first step compiles: it says nothing of the others' time.
      self._start, self._began = step, time.monotonic()
    text = '  '.join(
        f'{name} {_shown(value)}' for name, value in fields.items())
    self._bar.update(self._task, completed=step, text=text)
    if self._console.is_terminal:
      return
    if step % self._every == 0 or step == self._total:
      self._print(f'step {step}/{self._total}  {text}{self._left(step)}')

  def note(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._console.is_terminal:
      self._console.print(text, markup=False)
    else:
      self._print(text)

  def _left(self, step):
    done = step - (self._start or 0)
    if not done:
      return ''  # one step has shown no rate yet
    seconds = (time.monotonic() - self._began) / done
    return f'  {seconds * (self._total - step):.0f} s left'

  def _print(self, text):
    # Rich would wrap at 80 columns where there are none.
    print(text, file=sys.stderr, flush=True)


class _Bar(rich_progress.Progress):
  """The fields on lines of their own: beside the bar 80 columns cut them."""

  def get_renderables(self):
    yield self.make_tasks_table(self.tasks)
    for task in self.tasks:
      yield rich_text.Text(task.fields['text'])


def _shown(value):
  """Four digits, but no exponent for rates in tokens per second."""
  if isinstance(value, str):
    return value
  return f'{value:.0f}' if 1e4 <= abs(value) < 1e9 else f'{value:.4g}'


def summary_table(rows: list[tuple[str, str]]) -> None:
  """Prints the closing table, label and value, to stdout."""
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
      print(f'{label:<{width}}  {value}')
    return
  table = rich_table.Table(show_header=False)
  for row in rows:
    table.add_row(*row)
  console.print(table)
