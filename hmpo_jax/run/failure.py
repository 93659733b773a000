"""How runs fail, and what their folders say of it."""

import pathlib

from hmpo_jax.run import files
from hmpo_jax.training import update

FAILED = 'failed.json'


class NumericalFault(Exception):
  """Update after update was skipped for a numerical cause.

  Attributes:
    summary: of the run, where it came to its end that way.
  """

  summary: dict | None = None


def fail(
  workdir: pathlib.Path, reason: str, step: int, is_final: bool = False
) -> None:
  """Says in a run folder that its run failed after so many steps.

  Args:
    workdir: run folder, made if missing.
    reason: one line.
    step: finished ones.
    is_final: it would fail again.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  files.write_json(
    workdir / FAILED, {'reason': reason, 'step': step, 'final': is_final}
  )


def numerical_skips(record: dict) -> dict[str, int]:
  """Updates of a step that were skipped for a numerical fault, by cause."""
  counts = {c: int(record[f'skipped/{c}']) for c in update.NUMERICAL_CAUSES}
  return {cause: count for cause, count in counts.items() if count}
