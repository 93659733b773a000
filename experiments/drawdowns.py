"""Does the A-H gap predict drawdowns beyond what else is known?

  python experiments/drawdowns.py --workdir=runs/plan

reads the records of a plan's runs, finished or still running, prints what the
gap and its clip-normalised history add to the variance of the log-ratios, the
KL and the effective sample sizes, seed by seed left out, and what the rules of
the external detector would have said, and writes drawdowns.csv to the folder.
Minutes for hundreds of runs; needs the `plot` extra.
"""

import importlib.util
import pathlib

from absl import app
from absl import flags

from hmpo_jax.run import command_line

_WORKDIR = flags.DEFINE_string('workdir', None, 'Plan folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', '', 'Folder of drawdowns.csv; by default that of the plan.'
)
_RESAMPLES = flags.DEFINE_integer(
  'resamples', 100, 'Of the bootstrap over seeds.', lower_bound=20
)


def main(_) -> None:
  """Prints and writes the table."""
  missing = [
    name for name in ('pandas', 'scipy') if not importlib.util.find_spec(name)
  ]
  if missing:
    command_line.refuse(
      f"{', '.join(missing)} not installed: pip install -e '.[plot]' first"
    )
  # Extras, so maybe not there.
  from hmpo_jax.analysis import drawdowns  # noqa: PLC0415
  from hmpo_jax.analysis import prediction  # noqa: PLC0415
  from hmpo_jax.analysis import records  # noqa: PLC0415

  with command_line.reported():
    rows = drawdowns.rows(records.read(_WORKDIR.value))
    found = prediction.table(rows, num_resamples=_RESAMPLES.value)
  runs = rows.groupby(['rung', 'seed'])['drawdown'].first()
  print(
    f'{runs.notna().sum()} drawdowns in {len(runs)} runs of '
    f'{rows["seed"].nunique()} seeds; {int(rows["follows"].sum())} of '
    f'{len(rows)} steps have one within {drawdowns.AHEAD}'
  )
  print(found.to_string(index=False, float_format='%.3f', na_rep='-'))
  out = pathlib.Path(_OUT.value or _WORKDIR.value)
  out.mkdir(parents=True, exist_ok=True)
  found.to_csv(out / 'drawdowns.csv', index=False, float_format='%.6g')


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
