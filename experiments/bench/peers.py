"""Train steps in a process of their own, other projects' and ours; on Linux.

Theirs and our requirements don't fit into one environment: each runs under an
interpreter that has it, and need not be installed where this one runs. See
`peer_loop` for what the processes do, `trl_peer` and `tunix_peer` for how the
others are set up. Our own step runs so too, as `OWN`: the most memory that a
process has had says little of a step where other programs ran before it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import subprocess
import sys
import tempfile

from experiments.bench import own_peer
from experiments.bench import peer_loop
from experiments.bench import trl_peer
from experiments.bench import tunix_peer
from experiments.bench import workloads

PEERS = ('trl', 'tunix')
OWN = 'hmpo_jax'

_SCRIPTS = {
  'trl': trl_peer.__file__,
  'tunix': tunix_peer.__file__,
  OWN: own_peer.__file__,
}
_SETTINGS = {
  # Threads of torch that wait would keep their cores busy.
  'trl': ('OMP_WAIT_POLICY=PASSIVE', 'TOKENIZERS_PARALLELISM=false'),
  'tunix': ('JAX_PLATFORMS=cpu', 'WANDB_MODE=disabled'),
  # What this process can import.
  OWN: (
    'JAX_PLATFORMS=cpu',
    f'PYTHONPATH={":".join(path or "." for path in sys.path)}',
  ),
}
_STEP = {'seconds', 'rollout_s', 'rest_s', 'peak_mb'}


def describe(peer: str, python: str) -> dict:
  """Versions and number of threads of a peer; takes seconds.

  Args:
    peer: one of `PEERS`.
    python: interpreter, 3.11 or later, that has it.

  Returns:
    'threads', and for each package its version.

  Raises:
    OSError: there is no such interpreter, or it cannot import the peer; the
      reason in one line.
  """
  result = subprocess.run(
    _command(peer, python),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  if result.returncode:
    raise ChildProcessError(_reason(result.stderr, result.returncode))
  return _answer(peer, result.stdout, {'threads'})


@contextlib.contextmanager
def worker(
  peer: str, python: str, workload: workloads.Workload, core: int | None = None
) -> Iterator[Callable[[], dict]]:
  """A process in which a peer trains on a workload.

  Args:
    peer: one of `PEERS`, or `OWN`.
    python: interpreter that has it.
    workload: what a step is.
    core: the one core that `OWN` is to use; None: all.

  Yields:
    A function that runs one step and returns what it took: 'seconds' in all, of
    these 'rollout_s' to sample and 'rest_s', and 'peak_mb', the most memory
    that the process has had in RAM since its start, in megabytes of 1e6 bytes.
    The first two or so calls compile or fill caches.

  Raises:
    OSError: as `describe`, or the peer's policy or batch isn't the workload's,
      or the process ended; then or by a call. The reason in one line.
  """
  with contextlib.ExitStack() as stack:
    scratch = stack.enter_context(
      tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    )
    errors = stack.enter_context(tempfile.TemporaryFile('w+', errors='replace'))
    fields = json.dumps(
      workload._asdict() | workloads.RECIPE._asdict() | {'core': core}
    )
    process = stack.enter_context(
      subprocess.Popen(
        _command(peer, python, fields, settings=(f'TMPDIR={scratch}',)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
      )
    )
    # It has nothing to save, and its step may take long.
    stack.callback(process.kill)
    asked = _Process(peer, process, errors)
    num_params = asked.answer({'num_params'})['num_params']
    if num_params != workload.num_params:
      raise ChildProcessError(
        f'{workload.name} has {workload.num_params} '
        f'parameters, that of {peer} {num_params}'
      )
    yield asked.step


class _Process:
  """What is asked of a running peer."""

  def __init__(self, peer, process, errors):
    self._peer = peer
    self._process = process
    self._errors = errors

  def step(self):
    """Runs a step; what it took."""
    with contextlib.suppress(BrokenPipeError):  # there will be no answer
      self._process.stdin.write(b'step\n')
    return self.answer(_STEP)

  def answer(self, keys):
    """The next line."""
    line = self._process.stdout.readline()
    if line:
      return _answer(self._peer, line, keys)
    self._process.kill()  # which has no effect if it has ended
    status = self._process.wait()
    self._errors.seek(0)
    raise ChildProcessError(_reason(self._errors.read(), status))


def _command(peer, python, *arguments, settings=()):
  settings = ('HF_HUB_OFFLINE=1', *_SETTINGS[peer], *settings)
  # -P: the folder of this file would hide packages that have its names.
  script = peer_loop.__file__, _SCRIPTS[peer]
  return ['env', *settings, python, '-P', *script, *arguments]


def _answer(peer, text, keys):
  """An object with these keys."""
  try:
    answer = json.loads(text)
  except ValueError:
    answer = None
  if not isinstance(answer, dict) or not keys <= set(answer):
    raise ChildProcessError(f'not what the process of {peer} says: {text!r}')
  return answer


def _reason(errors, status):
  """The last that a process said before it ended."""
  lines = [line for line in errors.splitlines() if line.strip()]
  return lines[-1] if lines else f'the process ended with status {status}'
