"""What a person sees of a run: a bar or plain lines, and the closing table."""

import sys
import time

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

# Off a terminal: one line each time this share of the steps is done.
_LINES = 20


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
    self._bar = rich_progress.Progress(
        rich_progress.TextColumn('step {task.completed:.0f}/{task.total:.0f}'),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TextColumn('{task.fields[text]}'),
        rich_progress.TimeRemainingColumn(),
        console=self._console,
        disable=not self._console.is_terminal)
    self._task = self._bar.add_task('', total=total_steps, text='compiling')

  def __enter__(self):
    self._bar.start()
    return self

  def __exit__(self, *_):
    self._bar.stop()

  def update(self, step: int, fields: dict[str, float]) -> None:
    """Shows the numbers of a finished step."""
    if self._start is None:
      # The first step compiles: it says nothing of the others' time.
      self._start, self._began = step, time.monotonic()
    text = '  '.join(f'{name} {value:.4g}' for name, value in fields.items())
    self._bar.update(self._task, completed=step, text=text)
    if self._console.is_terminal:
      return
    if step % self._every == 0 or step == self._total:
      self._print(f'step {step}/{self._total}  {text}  '
                  f'{self._seconds_left(step):.0f} s left')

  def note(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._console.is_terminal:
      self._console.print(text, markup=False)
    else:
      self._print(text)

  def _seconds_left(self, step):
    done = step - (self._start or 0)
    seconds = (time.monotonic() - self._began) / max(done, 1)
    return seconds * (self._total - step)

  def _print(self, text):
    # Rich would wrap at 80 columns where there are none.
    print(text, file=sys.stderr, flush=True)


def summary_table(rows: list[tuple[str, str]]) -> None:
  """Prints the closing table, label and value, to stdout."""
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
      print(f'{label:<{width}}  {value}')
    return
  table = rich_table.Table(show_header=False)
  for row in rows:
    table.add_row(*row)
  console.print(table)
