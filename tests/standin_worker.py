"""Stands in for a plan's worker: makes run folders without training.

What a run does depends on its order p: 9 fails for a numerical cause, 8 kills the
process, 7 ends it with a code, 6 waits to be asked to stop, 5 is refused;
others finish.
"""

import json
import os
import pathlib
import signal
import sys
import time


def main() -> int:
  """Does a request of launch.Launcher."""
  request = json.loads(sys.stdin.readline())
  for index, (overrides, folder) in enumerate(request['runs']):
    order, path = overrides['loss.p'], pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for step in range(1, overrides['num_steps'] + 1) if order != 8 else ():
      _tell('step', step=step)
    if order == 9:
      _tell('failed', index, text='not a number', step=1)
    elif order == 8:
      print('some words', file=sys.stderr, flush=True)
      os.kill(os.getpid(), signal.SIGKILL)
    elif order == 5:
      _tell('refused', index, text='another process is writing it')
    elif order == 7:
      print('out of order', file=sys.stderr, flush=True)
      return 5
    elif order == 6:
      return _wait()
    else:
      _finish(path, overrides['num_steps'])
      _tell('done', index)
  return 0


def _tell(kind, run=-1, text='', step=0):
  report = {'kind': kind, 'run': run, 'text': text, 'step': step}
  print(json.dumps(report), flush=True)


def _wait():
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
  while not asked:
    time.sleep(0.05)
  return 75


def _finish(path, steps):
  """A summary that summary.read takes for whole."""
  count = int((path / 'made').read_text()) if (path / 'made').exists() else 0
  (path / 'made').write_text(str(count + 1), encoding='utf-8')
  zero = dict.fromkeys(
    (
      'steps',
      'updates',
      'episodes',
      'tokens',
      'heldout_reward_first',
      'heldout_reward_last',
      'heldout_reward_last_stderr',
      'gap_closed',
      'heldout_exact_first',
      'heldout_exact_last',
      'ratio_mean',
      'clip_low_frac',
      'clip_high_frac',
      'sigma',
      'cosine',
      'cosine_unclipped',
      'max_logit',
      'updates_over_monitor_tau_frac',
      'exploded',
      'updates_qk_clipped_frac',
    ),
    0,
  )
  (path / 'metrics.jsonl').write_text('{}\n' * steps, encoding='utf-8')
  (path / 'summary.json').write_text(
    json.dumps(zero | {'steps': steps, 'skipped': {}}), encoding='utf-8'
  )


if __name__ == '__main__':
  sys.exit(main())
