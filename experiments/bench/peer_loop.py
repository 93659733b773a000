"""The process in which another project trains, a step for each line it reads.

  python -P peer_loop.py SCRIPT            versions of what the script uses
  python -P peer_loop.py SCRIPT WORKLOAD   the steps

The other project need not be installed beside JAX: this file and the scripts
run under any interpreter of 3.11 or later that has it, on Linux, and import at
the top nothing from outside the standard library. All that is said on the
standard output is JSON, one object a line.

A script has `describe() -> dict` and `train(workload, steps)`, which runs the
other project's own loop on one of `workloads.WORKLOADS` and `RECIPE`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import importlib.util
import json
import random
import sys
import time
import traceback
import types
from typing import Any
from typing import TextIO

PAD, UNKNOWN, BOS = range(3)  # tokens that no prompt has within it


class Steps:
  """What a training loop asks before each step, and tells of it.

  A token is a word, of `word`; the last one would end a response.
  """

  def __init__(self, workload: Any, sink: TextIO):
    self.pad, self.unknown, self.bos = PAD, UNKNOWN, BOS
    self.eos = workload.vocab_size - 1
    self._workload = workload
    self._sink = sink
    self._rollout_s = 0.0
    self._lengths: list[tuple[int, int]] = []

  def word(self, token: int) -> str:
    """The text of a token; none begins with that of another."""
    width = len(str(self.eos))
    # Otherwise a tokenizer would find a special token in the other.
    return f't{token:0{width}}'

  def prompts(self, count: int, length: int) -> list[str]:
    """Random texts of that many tokens; the same for the same arguments."""
    rng = random.Random(0)
    texts = []
    for _ in range(count):
      tokens = (rng.randrange(BOS + 1, self.eos) for _ in range(length))
      texts.append(' '.join(map(self.word, tokens)))
    return texts

  def rewards(self, completions: Iterable[str]) -> list[float]:
    """For each text the share of tokens that are the rewarded one."""
    word = self.word(self._workload.reward_token)
    return [
      text.split().count(word) / self._workload.response_len
      for text in completions
    ]

  def rollout(
    self,
    generate: Callable,
    lengths: Callable[[Any], Iterable[tuple[int, int]]],
  ) -> Callable:
    """`generate`, whose time is separated from the rest of the step.

    Args:
      generate: returns when the responses are there.
      lengths: tokens of prompt and response of each sequence that it returned.
    """

    def timed(*args, **kwargs):
      start = time.perf_counter()
      result = generate(*args, **kwargs)
      self._rollout_s += time.perf_counter() - start
      self.sampled(lengths(result))
      return result

    return timed

  def sampled(self, lengths: Iterable[tuple[int, int]]) -> None:
    """Is told the tokens of prompt and response of each new sequence.

    `rollout` tells them; where it can't stand around the sampling alone, its
    time stays 0.
    """
    self._lengths += lengths

  def serve(self, num_params: int) -> Iterator[None]:
    """Yields at the start of each step and goes on at its end.

    Args:
      num_params: weights of the policy.

    Raises:
      ValueError: a step did not sample what the workload says.
    """
    self._say({'num_params': num_params})
    for _ in sys.stdin:
      self._rollout_s, self._lengths = 0.0, []
      start = time.perf_counter()
      yield
      seconds = time.perf_counter() - start
      self._check_lengths()
      self._say(
        {
          'seconds': seconds,
          'rollout_s': self._rollout_s,
          'rest_s': seconds - self._rollout_s,
          # Not getrusage's: that of the process that started this one is in it.
          'peak_mb': 1024 * int(_of_process('VmHWM').split()[0]) / 1e6,
        }
      )

  def _check_lengths(self):
    of_each = self._workload.prompt_len, self._workload.response_len
    count = self._workload.num_prompts * self._workload.group_size
    if self._lengths != [of_each] * count:
      found = sorted(set(self._lengths))
      raise ValueError(
        f'{count} sequences must have {of_each} tokens: '
        f'{len(self._lengths)} have {found}'
      )

  def _say(self, answer):
    print(json.dumps(answer), file=self._sink, flush=True)


def main(script: str, workload: str | None = None) -> None:
  """Runs a script's `describe`, or its `train` on a workload.

  Args:
    script: path.
    workload: fields of a workload and of the recipe, in JSON.

  Raises:
    SystemExit: whatever went wrong, in one line.
  """
  # What libraries print is no answer.
  sink, sys.stdout = sys.stdout, sys.stderr
  try:
    _run(script, workload, sink)
  except Exception as error:  # noqa: BLE001
    traceback.print_exc()
    first, *_ = str(error).splitlines() or ['']
    raise SystemExit(f'{type(error).__name__}: {first}') from None


def _run(script, workload, sink):
  peer = _load(script)
  if workload is None:
    print(json.dumps({'threads': _num_cores()} | peer.describe()), file=sink)
  else:
    fields = types.SimpleNamespace(**json.loads(workload))
    peer.train(fields, Steps(fields, sink))


def _load(path):
  # By its path: in the folder are names that would hide those of packages.
  spec = importlib.util.spec_from_file_location('peer', path)
  assert spec and spec.loader, path
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _num_cores():
  """Cores that this process may use, which is what JAX takes."""
  mask = _of_process('Cpus_allowed').replace(',', '')
  return int(mask, 16).bit_count()


def _of_process(name):
  with open('/proc/self/status', encoding='utf-8') as file:
    lines = (line.split(':', 1) for line in file)
    return next(value.strip() for key, value in lines if key == name)


if __name__ == '__main__':
  main(*sys.argv[1:])
