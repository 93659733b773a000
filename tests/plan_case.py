"""What the tests of the report share: a folder and what is read from it."""

import json
import pathlib
import tempfile

from absl.testing import parameterized

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import report
from tests import simulated_plan


class PlanTestCase(parameterized.TestCase):
  """Has a folder of its own for a simulated plan."""

  def setUp(self):
    super().setUp()
    self.folder = self.new_folder()

  def new_folder(self) -> pathlib.Path:
    """Is gone after the test."""
    return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def plan(self, *args, **kwargs):
    """Writes a plan; its tables and what its runs came to."""
    simulated_plan.write(self.folder, *args, **kwargs)
    plan = records.read(self.folder)
    return plan, outcomes.per_seed(plan)

  def contrast(self, *args, outcome='area', **kwargs):
    """The first contrast of a new plan in an outcome."""
    table = contrasts.make(*self.plan(*args, **kwargs))
    return table[table['outcome'] == outcome].iloc[0]

  def page(self, draw=False) -> str:
    """The report of the folder as it is now."""
    return report.write(self.folder, draw=draw).read_text(encoding='utf-8')

  def records(self, run: str) -> list[dict]:
    """What a run has recorded."""
    text = self._metrics(run).read_text(encoding='utf-8')
    return [json.loads(line) for line in text.splitlines()]

  def rewrite(self, run: str, lines: list[dict]) -> None:
    """Replaces what a run has recorded."""
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    self._metrics(run).write_text(text, encoding='utf-8')

  def _metrics(self, run):
    return self.folder / 'runs' / run / 'metrics.jsonl'
