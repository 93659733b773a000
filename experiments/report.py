"""What a plan came to: report.md, figures and tables, at any time.

  python experiments/report.py --workdir=runs/plan

reads the folder that experiments/compare.py wrote, finished or still running,
and writes report/report.md, report/figures/*.png and *.svg and
report/tables/*.csv there. Seconds; needs the `plot` extra.
"""

import importlib.util

from absl import app
from absl import flags

from hmpo_jax import command_line

_WORKDIR = flags.DEFINE_string('workdir', 'runs/plan', 'Folder of the plan.')
_OUT = flags.DEFINE_string(
    'out', '', 'Folder of the report; by default report/ in that of the plan.')
_FIGURES = flags.DEFINE_bool('figures', True, 'Whether to draw the figures.')


def main(_) -> None:
  """Writes the report and says where it is."""
  missing = [
      name for name in ('matplotlib', 'pandas', 'scipy')
      if not importlib.util.find_spec(name)
  ]
  if missing:
    command_line.refuse(f'{", ".join(missing)} not installed: '
                        "pip install -e '.[plot]' first")
  # Extras, so maybe not there.
  from hmpo_jax.analysis import report  # pylint: disable=import-outside-toplevel
  with command_line.reported():
    print(report.write(_WORKDIR.value, _OUT.value, draw=_FIGURES.value))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
