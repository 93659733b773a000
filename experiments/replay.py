"""Does one step of a run again and shows what was not finite, in order.

  python experiments/replay.py --workdir=runs/hmpo --step=12

A step with skipped updates is named in faults.jsonl of the run folder.
"""

from absl import app
from absl import flags

from hmpo_jax.run import command_line
from hmpo_jax.run import rerun

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_STEP = flags.DEFINE_integer('step', None, 'Step, from 1.', required=True)


def main(_) -> None:
  """Replays one step."""
  with command_line.reported():
    with rerun.opened(_WORKDIR.value, print) as recorded:
      suspects = list(recorded.suspects(_STEP.value))
  if not suspects:
    print(f'step {_STEP.value}: every array was finite')
    return
  first, *rest = suspects
  print(f'step {_STEP.value}: the first that was not finite is {_line(first)}')
  for suspect in rest:
    print(f'  then {_line(suspect)}')


def _line(suspect):
  place = (
    'the rollout' if suspect.place == 'rollout' else f'update {suspect.place}'
  )
  return (
    f'{suspect.name} of {place}: {suspect.num_bad} values, the first at '
    f'{suspect.first}'
  )


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
