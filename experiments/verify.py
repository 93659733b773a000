"""Does steps of a run again and compares all bits.

  python experiments/verify.py --workdir=runs/hmpo

From the oldest checkpoint that is kept, or the warm start, to the newest. Exit
code 0: bit-equal; 1: not, and the first array that differs is named.
"""

import sys

from absl import app
from absl import flags
from absl import logging

from hmpo_jax import config as config_lib
from hmpo_jax import rerun

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)


def main(argv: list[str]) -> None:
  """Verifies one run folder."""
  del argv
  logging.set_verbosity(logging.WARNING)
  try:
    with rerun.opened(_WORKDIR.value, print) as recorded:
      check = recorded.verify()
  except config_lib.ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  if check.difference:
    print(f'differs after steps {check.start + 1} to {check.end}: '
          f'{check.difference}')
    sys.exit(1)
  print(f'bit-equal: steps {check.start + 1} to {check.end}, '
        f'{check.num_arrays} arrays and all metrics')


if __name__ == '__main__':
  app.run(main)
