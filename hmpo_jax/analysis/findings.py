"""What a report has computed of a plan, for the parts that write it."""

from typing import NamedTuple

import pandas

from hmpo_jax.analysis import records


class Findings(NamedTuple):
  """A plan with its outcomes."""

  plan: records.Plan
  seeds: pandas.DataFrame  # as of outcomes.per_seed
  # contrasts, variants, targets, risk, ladders and rungs, by these names
  tables: dict[str, pandas.DataFrame]
