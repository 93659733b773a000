"""How long parts of the project take, against the simplest form of each.

  python experiments/bench --suite=step --peers --trl_python=PATH \
      --tunix_python=PATH
  python experiments/bench --suite=rollout --profile=FOLDER
  python experiments/bench --suite=runs
  python experiments/bench --suite=kernels
  python experiments/bench --suite=logprobs
  python experiments/bench --suite=optimizer --torch_python=PATH
  python experiments/bench --suite=attention
  python experiments/bench --suite=all

writes SUITE.csv and SUITE.json to results/bench and prints the tables. What a
suite times stands at the top of its module in experiments/bench/, how it is timed
in experiments/bench/timing.py, its workloads in experiments/bench/workloads.py; `all`
is every suite in turn. Times hold for a machine that does nothing else: see the
load average beside them. On two cores `kernels` takes about 3 minutes.

`optimizer` times torch's Muon beside the others where torch can be imported, or
where --torch_python names an interpreter that can import it. --peers has `step`
time TRL's GRPOTrainer and google-tunix's GRPOLearner in the same rounds, where
they can be imported, or where --trl_python and --tunix_python name interpreters
that can import them; one line says what is left out.

The suites run on any device of JAX's. `rollout` and `step` first measure its
bandwidth or its rate of products, and hold their rows to it; on an accelerator
they time a policy of 0.6 billion parameters too.
"""

import functools
import os
import pathlib
import re
import sys

from absl import app
from absl import flags

from experiments.bench import attention
from experiments.bench import kernels
from experiments.bench import limits
from experiments.bench import logprobs
from experiments.bench import many_runs
from experiments.bench import optimizer
from experiments.bench import peers
from experiments.bench import report
from experiments.bench import rollouts
from experiments.bench import steps
from experiments.bench import timing
from experiments.bench import torch_muon
from hmpo_jax import config as config_lib
from hmpo_jax.run import command_line
from hmpo_jax.training import run_axis

SUITES = {
  'kernels': kernels.SUITE,
  'attention': attention.SUITE,
  'logprobs': logprobs.SUITE,
  'optimizer': optimizer.SUITE,
  'rollout': rollouts.SUITE,
  'step': steps.SUITE,
  'runs': many_runs.SUITE,
}
_ALL = 'all'

_SUITE = flags.DEFINE_enum('suite', 'kernels', [*SUITES, _ALL], 'What to time.')
_OUT = flags.DEFINE_string('out', 'results/bench', 'Folder of the results.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', None, 'Rounds; by default those of the suite.', lower_bound=2
)
_SHAPES = flags.DEFINE_list(
  'shapes',
  None,
  'By default those of the suite: '
  f'{"; ".join(",".join(suite.shapes) for suite in SUITES.values())}.',
)
_VARIANTS = flags.DEFINE_string(
  'variants', None, 'Regular expression of those to time.'
)
_PROFILE = flags.DEFINE_string(
  'profile',
  None,
  'Folder for a trace of each case, which TensorBoard and '
  'Perfetto open; the slowest operations are printed.',
)
_PEERS = flags.DEFINE_bool('peers', False, 'Whether to time other projects.')
_PYTHONS = {
  name: flags.DEFINE_string(
    f'{name}_python',
    None,
    f'Interpreter with {name}; by default the running one.',
  )
  for name in ('torch', *peers.PEERS)
}


def main(_) -> None:
  """Runs suites, writes their files and prints their tables."""
  name = _SUITE.value
  suites = SUITES if name == _ALL else {name: SUITES[name]}
  if 'runs' in suites:
    # Before JAX counts its devices; all other suites use the first alone.
    run_axis.one_device_per_core()
  with command_line.reported():
    _check_flags(suites)
    all_options = {key: _options(suite) for key, suite in suites.items()}
    torch, about_torch = _torch(suites)
    others, about_others = _others()
    for key, options in all_options.items():
      about = about_torch if SUITES[key].has_torch else {}
      if SUITES[key].has_torch:
        options = options._replace(torch_python=torch)
      if SUITES[key].has_peers and others:
        options = options._replace(peers=others)
        about = {'peers': about_others}
      run(key, options, pathlib.Path(_OUT.value), about)


def run(
  name: str, options: timing.Options, out: pathlib.Path, about: dict
) -> list[timing.Row]:
  """Times a suite and writes its results.

  Args:
    name: of the suite.
    options: what to time; a baseline always is.
    out: folder, made if missing.
    about: versions of what is timed beside the project.
  """
  if SUITES[name].has_limits:
    options = options._replace(limits=limits.measure())
  about = report.describe(name, options, about)
  rows = SUITES[name].measure(options)
  about['load_after'] = os.getloadavg()
  report.write(out, about, rows)
  report.show(about, rows)
  return rows


def _options(suite):
  """What the flags ask of a suite, without what other projects it finds."""
  examine = None
  if _PROFILE.value is not None:
    name = next(key for key, value in SUITES.items() if value is suite)
    examine = functools.partial(report.trace, _PROFILE.value, name)
  return timing.Options(
    shapes=_shapes(suite),
    rounds=_ROUNDS.value or suite.rounds,
    config=config_lib.default_config(),
    variants=_VARIANTS.value or '.*',
    examine=examine,
  )


def _torch(suites):
  """An interpreter that has torch and what torch that is; None, {} without."""
  if not any(suite.has_torch for suite in suites.values()):
    return None, {}
  python, about = _found('torch', torch_muon.describe, "torch's Muon")
  if python and about['torch_threads'] != os.cpu_count():
    timing.tell(
      f'torch uses {about["torch_threads"]} threads on '
      f"{os.cpu_count()} cores, JAX all of them: their times don't "
      'compare'
    )
  return python, about


def _others():
  """Interpreters that have the other projects, and the versions there."""
  pythons, about = {}, {}
  for peer in peers.PEERS if _PEERS.value else ():
    python, of_peer = _found(
      peer, functools.partial(peers.describe, peer), peer
    )
    if python:
      pythons[peer], about[peer] = python, of_peer
  return pythons, about


def _found(name, describe, title):
  """An interpreter that has something, and its versions; None, {} without."""
  flag = _PYTHONS[name].value
  python = flag or sys.executable
  try:
    return python, describe(python)
  except OSError as error:
    if flag:
      raise config_lib.ConfigError(
        f'--{name}_python={flag}: {error}'
      ) from error
    timing.tell(f'{title} is left out ({error}): see --{name}_python')
    return None, {}


def _check_flags(suites):
  """Before minutes of timing, not after."""
  for name in 'shapes', 'variants':
    if len(suites) > 1:
      _check_unset(name, 'each suite has its own')
  _check_variants(suites)
  if not any(suite.has_torch for suite in suites.values()):
    _check_unset('torch_python', f'--suite={_SUITE.value} times no torch')
  if not any(suite.has_peers for suite in suites.values()):
    _check_unset('peers', f'--suite={_SUITE.value} times no other project')
  for peer in peers.PEERS if not _PEERS.value else ():
    _check_unset(f'{peer}_python', 'must come with --peers')
  for name in suites:
    try:
      report.claim(_OUT.value, name)
    except OSError as error:
      raise config_lib.ConfigError(f'--out={_OUT.value}: {error}') from error


def _check_unset(name, reason):
  value = flags.FLAGS[name].value
  if value:
    raise config_lib.ConfigError(f'--{name}={value}: {reason}')


def _check_variants(suites):
  pattern = _VARIANTS.value
  names = [name for suite in suites.values() for name in suite.variants()]
  try:
    found = pattern is None or any(re.fullmatch(pattern, n) for n in names)
  except re.error as error:
    raise config_lib.ConfigError(f'--variants={pattern}: {error}') from error
  if not found:
    raise config_lib.ConfigError(
      f'--variants={pattern}: must match one of {", ".join(names)}'
    )


def _shapes(suite):
  texts = suite.shapes if _SHAPES.value is None else _SHAPES.value
  if not texts:
    raise config_lib.ConfigError(
      f'--shapes=: must be as {",".join(suite.shapes)}'
    )
  try:
    return list(map(suite.read_shape, texts))
  except ValueError as error:
    raise config_lib.ConfigError(f'--shapes={error}') from error


if __name__ == '__main__':
  # Compile times are to be those of compiling.
  app.run(
    main,
    flags_parser=functools.partial(command_line.parse_all, keep_programs=False),
  )
