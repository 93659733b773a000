"""A process that trains a group of a plan's runs, or probes some of them.

The plan's own process never touches a device: a worker that dies takes no other
run with it, and gives all its memory back.

The first line of stdin is the request, {"task": "train" | "probe", "runs":
[[overrides, folder], ...]}; at the end of stdin the worker is asked to end too.
What it tells stands line by line on stdout, each line a JSON object: a
group.Report, or a probe.Found.
"""

import json
import os
import signal
import sys
import threading

import ml_collections

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.plan import probe
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import command_line
from hmpo_jax.run import compile_cache
from hmpo_jax.run import interruption

TRAIN, PROBE = 'train', 'probe'


def main() -> int:
  """Does what stdin asks for; returns the exit code."""
  request = json.loads(sys.stdin.readline())
  threading.Thread(target=_end_with_plan, daemon=True).start()
  tell = _teller()
  compile_cache.switch_on()
  members = [
    (_config(overrides), folder) for overrides, folder in request['runs']
  ]
  with command_line.reported():
    if request['task'] == PROBE:
      for index, (config, folder) in enumerate(members):
        tell(probe.probe(index, config, folder))
      return 0
    try:
      run_batch.train(members, tell)
    except base.Interrupted:
      return interruption.EXIT_CODE
  return 0


def _end_with_plan():
  """A plan that was killed can't ask its workers to end."""
  while os.read(0, 1024):
    pass
  os.kill(os.getpid(), signal.SIGTERM)


def _config(overrides) -> ml_collections.ConfigDict:
  """A configuration that the plan's process has validated."""
  config = config_lib.default_config()
  for key, value in overrides.items():
    config_files.set_key(config, key, value)
  return config


def _teller():
  """Writes reports to stdout; whatever else is printed goes to stderr."""
  out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)

  def tell(report):
    # The process that listens may be gone: the run is worth more.
    try:
      print(json.dumps(report._asdict()), file=out, flush=True)
    except BrokenPipeError:
      pass

  return tell


if __name__ == '__main__':
  sys.exit(main())
