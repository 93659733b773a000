"""Shows what a controller would have decided in a run that is over.

  python experiments/replay_controller.py --workdir=runs/hmpo \
      --controller=hmpo_jax.run.controllers:Adaptive

It reads config.json and metrics.jsonl of the folder and changes nothing there.
--config.control.KEY=VALUE sets its cadence and its bounds. What it would have
changed stands in no record: the run went on as it did.
"""

import collections
import json
import pathlib
from typing import Any

from absl import app
from absl import flags

from hmpo_jax.config import files as config_files
from hmpo_jax.run import command_line
from hmpo_jax.run import control
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_CONTROLLER = flags.DEFINE_string(
  'controller',
  None,
  'module:function, module:Class or file.py:name; that '
  'of the run if not given.',
)
_OUT = flags.DEFINE_string(
  'out', None, 'File for its answers, one line each as in control.jsonl.'
)
_SHOWN = 20  # lines of decisions


def main(argv: list[str]) -> None:
  """Replays one controller."""
  with command_line.reported():
    workdir = pathlib.Path(_WORKDIR.value)
    overrides: dict[str, Any] = dict(map(command_line.override, argv))
    if _CONTROLLER.value:
      overrides['control.function'] = _CONTROLLER.value
    config = config_files.load(str(workdir / run_folder.CONFIG), overrides)
    if not config.control.function:
      command_line.refuse('--controller: must be given, as the run had none')
    records = run_records.read(workdir)
    answers = list(control.Controller(config).replay(records))
    lines = [
      {'step': step} | answer.line(config.control.may_stop)
      for step, answer in answers
    ]
    if _OUT.value:
      text = ''.join(json.dumps(line) + '\n' for line in lines)
      pathlib.Path(_OUT.value).write_text(text, encoding='utf-8')
  _print_changes(lines)
  _print_stop(lines, records)
  recorded = run_records.read_control(workdir)
  if recorded:
    same = [line['changes'] for line in recorded] == [
      line['changes'] for line in lines
    ]
    print(f'the run logged {"the same" if same else "other"} decisions')


def _print_changes(lines):
  asked = [
    (line['step'], change) for line in lines for change in line['changes']
  ]
  moved = [(step, c) for step, c in asked if c['after'] != c['before']]
  for step, change in moved[:_SHOWN]:
    note = (
      f' (asked {change["asked"]}: {change["note"]})' if change['note'] else ''
    )
    print(
      f'step {step}: {change["name"]} {change["before"]} -> '
      f'{change["after"]}{note}'
    )
  if len(moved) > _SHOWN:
    print(f'... {len(moved) - _SHOWN} more; --out=FILE writes all')
  refused = [
    (c['name'], c['note'])
    for _, c in asked
    if c['after'] == c['before'] and c['note']
  ]
  for (name, note), count in collections.Counter(refused).items():
    print(f'{name} left as it is, {count} times: {note}')
  errors = [line for line in lines if line['error']]
  print(
    f'{len(lines)} answers, {len(asked)} decisions: {len(moved)} change '
    f'something, {len(refused)} are refused or cut to what holds; '
    f'{len(errors)} errors'
  )
  if errors:
    print(f'step {errors[0]["step"]}: {errors[0]["error"]}')


def _print_stop(lines, records):
  """Where it would have ended the run, and what came after."""
  stop = next((line for line in lines if line['stop']), None)
  if stop is None:
    return
  there, last = records[stop['step'] - 1], records[-1]
  pair = lambda name: f'{there[name]:.3f} there, {last[name]:.3f} at the end'
  print(
    f'it would have ended the run at step {there["step"]} of '
    f'{last["step"]} ({stop["stop"]}): training reward '
    f'{pair("train_reward_mean")}, held-out {pair("eval_reward")}'
  )


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
