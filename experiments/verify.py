"""Does steps of a run again and compares all bits.

  python experiments/verify.py --workdir=runs/hmpo

From the oldest checkpoint that is kept, or the warm start, to the newest. Exit
code 0: bit-equal; 1: not, and the first array that differs is named.
"""

import pathlib
import sys

from absl import app
from absl import flags

from hmpo_jax.run import command_line
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import rerun

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)


def main(_) -> None:
  """Verifies one run folder."""
  notes: list[str] = []
  with command_line.reported():
    with rerun.opened(_WORKDIR.value, notes.append) as recorded:
      check = recorded.verify()
      doubts = run_folder.doubts(pathlib.Path(_WORKDIR.value))
  steps = f'steps {check.start + 1} to {check.end}'
  if check.difference or notes:
    if doubts:
      notes.append(f'an honest run may differ here, for {doubts}')
    print(f'differs in {steps}: {"; ".join([*notes, check.difference])}')
    sys.exit(1)
  print(
    f'bit-equal: {steps}, {check.num_arrays} arrays, training and held-out '
    'metrics'
  )


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
