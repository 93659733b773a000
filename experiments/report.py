"""What a plan came to: report.md, figures and tables, at any time.

  python experiments/report.py --workdir=runs/plan

reads the folder that experiments/compare.py wrote, finished or still running,
and writes report/report.md, report/figures/*.png and *.svg and
report/tables/*.csv there. Seconds; needs the `plot` extra.

  python experiments/report.py --answers=README.md,results/README.md

writes the marked parts of these pages anew, from the reports under results/.
"""

import importlib.util
import pathlib

from absl import app
from absl import flags

from hmpo_jax.run import command_line

_WORKDIR = flags.DEFINE_string('workdir', 'runs/plan', 'Folder of the plan.')
_OUT = flags.DEFINE_string(
  'out', '', 'Folder of the report; by default report/ in that of the plan.'
)
_ANSWERS = flags.DEFINE_list(
  'answers',
  [],
  'Pages whose marked parts are written anew from --results; '
  'then no plan is reported.',
)
_RESULTS = flags.DEFINE_string(
  'results', 'results', 'Folder of the reports that answers are from.'
)
_FIGURES = flags.DEFINE_bool('figures', True, 'Whether to draw the figures.')


def main(_) -> None:
  """Writes the report and says where it is."""
  missing = [
    name
    for name in ('matplotlib', 'pandas', 'scipy')
    if not importlib.util.find_spec(name)
  ]
  if missing:
    command_line.refuse(
      f"{', '.join(missing)} not installed: pip install -e '.[plot]' first"
    )
  # Extras, so maybe not there.
  from hmpo_jax.analysis import answers  # noqa: PLC0415
  from hmpo_jax.analysis import marked  # noqa: PLC0415
  from hmpo_jax.analysis import report  # noqa: PLC0415

  with command_line.reported():
    if not _ANSWERS.value:
      print(report.write(_WORKDIR.value, _OUT.value, draw=_FIGURES.value))
      return
    blocks = answers.read(_RESULTS.value)
    for page in map(pathlib.Path, _ANSWERS.value):
      page.write_text(
        marked.fill(page.read_text(encoding='utf-8'), blocks), encoding='utf-8'
      )
      print(page)


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
