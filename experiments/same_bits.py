"""Does this tree still make the bits of another commit?

  python experiments/same_bits.py --against=COMMIT

runs tiny configurations in a worktree of that commit and in this tree, each
with its own PYTHONPATH and processes, and compares metrics.jsonl, metrics.csv
and the arrays of the last checkpoint, byte by byte. Of each run that differs it
names the first record and key that do, at the end every key that differs
anywhere. What the other commit makes is kept in runs/same_bits.

  --except=agm/*,*_history   keys that may differ, appear or vanish
  --cases=grpo,muon          some of the configurations

Exit codes: 0 the same bits, 1 others, 2 bad input or a run that failed. At most
6 minutes on two cores.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import configparser
import contextlib
import csv
import fnmatch
import hashlib
from importlib import metadata
from importlib import util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback

from absl import app
from absl import flags

_AGAINST = flags.DEFINE_string('against', '', 'Commit to compare with.')
_EXCEPT = flags.DEFINE_list(
  'except', [], 'Keys, or patterns of them, that may differ, appear or vanish.'
)
_CASES = flags.DEFINE_list('cases', [], 'Configurations; all if unset.')
_RUN_IN = flags.DEFINE_string(
  'run_in',
  '',
  'Only runs the configurations, in this folder, with the '
  'hmpo_jax that Python finds: what a comparison does in each tree.',
)

_ROOT = pathlib.Path(__file__).absolute().parent.parent
_KEPT = _ROOT / 'runs' / 'same_bits'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_AT_ONCE = 2  # processes
_METRICS, _TABLE, _ARRAYS = 'metrics.jsonl', 'metrics.csv', 'arrays.json'
_FOUND, _LOG = 'hmpo_jax.json', 'log.txt'

_PLAN, _RESUMED = 'plan', 'host_reward_resumed'  # run in a way of their own

_FILES = {
  'base.json': '{"config": {}}',
  'prompts.jsonl': ''.join(
    f'{{"prompt": [{2 + i % 10}, {2 + i // 10 % 10}, '
    f'{2 + i // 100}], "answer": [{2 + i % 10}, 3, 4, 1]}}\n'
    for i in range(400)
  ),
  'controller.py': """
def decide(record):
  return {'hyperparams': {'learning_rate': .004 / record['step'],
                          'epsilon': .1, 'agm_iterations': 3}, 'p': -.5}
""",
  # Fails in the second step; the run then goes on from its checkpoint.
  'rewards.py': """
import pathlib
CALLS = pathlib.Path(__file__).with_name('calls')
def judge(prompts, responses):
  with CALLS.open('a') as file:
    file.write('.')
  if CALLS.stat().st_size == 3:
    raise RuntimeError('once')
  return [sum(t in p for t in r) / 4 for p, r in zip(prompts, responses)]
""",
  'plan.py': """
from hmpo_jax.plan import design
def get_config():
  return design.Plan(
      question='Same bits?', exploratory=True, seeds=range(2),
      tasks={'sort': {}}, variants={
          'hmpo': design.Variant({'loss.p': -1.}),
          'gspo': design.Variant({'loss.p': 0.})})
""",
}


class Failed(Exception):
  """A comparison that can't be made; the message is for the user."""


def main(_) -> None:
  """Compares, or runs what a comparison needs."""
  if _RUN_IN.value:
    return run_cases(pathlib.Path(_RUN_IN.value), _CASES.value)
  try:
    found = _compare()
  except Failed as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  sys.exit(int(found))


def _compare():
  """Whether anything differs, after saying what."""
  if not _AGAINST.value:
    raise Failed('no commit: give one as --against=COMMIT')
  unknown = set(_CASES.value) - {case for job in _jobs() for case in job}
  if unknown:
    raise Failed(f'--cases={",".join(sorted(unknown))}: unknown')
  commit = _git('rev-parse', '--verify', f'{_AGAINST.value}^{{commit}}')
  with tempfile.TemporaryDirectory() as scratch:
    here = pathlib.Path(scratch) / 'here'
    there = _kept(commit, pathlib.Path(scratch))
    run_tree(_ROOT, here, _CASES.value)
    return report(there, here, _EXCEPT.value)


def _kept(commit, scratch):
  """Folder of what a commit makes here, made unless it is kept."""
  folder = _KEPT / f'{commit[:12]}-{_identity()}'
  if not folder.exists():
    tree = scratch / 'tree'
    _git('worktree', 'add', '--detach', str(tree), commit)
    try:
      run_tree(tree, scratch / 'there', _CASES.value)
    finally:
      _git('worktree', 'remove', '--force', str(tree))
    _KEPT.mkdir(parents=True, exist_ok=True)
    shutil.move(scratch / 'there', folder)
  print(f'{commit[:12]}: {_package(folder)}, kept in {folder}')
  return folder


def _identity():
  """Digest of all that decides the bits of a commit."""
  known = {
    'versions': [metadata.version(name) for name in _PACKAGES],
    'python': sys.version,
    'threads': len(os.sched_getaffinity(0)),
    'settings': {
      name: value
      for name, value in os.environ.items()
      if name == 'XLA_FLAGS' or name.startswith('JAX_') and 'CACHE' not in name
    },
    'cases': [_jobs(), _FILES, _CASES.value],
  }
  text = json.dumps(known, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _jobs() -> list[dict[str, list[str]]]:
  """Overrides by the name of each case, of each process."""
  table = configparser.ConfigParser()
  table.read(pathlib.Path(__file__).with_suffix('.ini'), encoding='utf-8')
  base = table.defaults()['base'].split()
  return [
    {
      name: base + text.split()
      for name, text in table[section].items()
      if name != 'base'
    }
    for section in table.sections()
  ]


def run_tree(
  tree: pathlib.Path, folder: pathlib.Path, cases: Sequence[str]
) -> None:
  """Runs cases with the code of a tree, some at a time.

  Args:
    tree: checkout whose hmpo_jax and experiments are used.
    folder: for what they make, made.
    cases: names in the table; all if empty.

  Raises:
    Failed: another hmpo_jax was imported, or a run failed.
  """
  folder.mkdir(parents=True)
  for name, text in _FILES.items():
    (folder / name).write_text(text, encoding='utf-8')
  jobs = [
    [case for case in job if not cases or case in cases] for job in _jobs()
  ]
  with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    results = [pool.submit(_run_job, tree, folder, job) for job in jobs if job]
    for result in results:
      result.result()
  print(f'ran {tree} with {_package(folder)}', flush=True)


def _run_job(tree, folder, cases):
  path = os.pathsep.join(
    filter(None, [str(tree), os.environ.get('PYTHONPATH')])
  )
  result = subprocess.run(
    [
      sys.executable,
      __file__,
      f'--run_in={folder}',
      f'--cases={",".join(cases)}',
    ],
    cwd=tree,
    env={'JAX_PLATFORMS': 'cpu'} | os.environ | {'PYTHONPATH': path},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  if result.returncode:
    raise Failed(f'{tree}: {(result.stderr or "?").strip().splitlines()[-1]}')


def _package(folder):
  """hmpo_jax/__init__.py of the code that ran in a folder."""
  return pathlib.Path(json.loads((folder / _FOUND).read_text(encoding='utf-8')))


def run_cases(folder: pathlib.Path, cases: Sequence[str]) -> None:
  """Runs cases in this process, by the experiments of the tree it is in.

  Args:
    folder: from `run_tree`, which names its files to the configurations.
    cases: names in the table.
  """
  import hmpo_jax  # noqa: PLC0415

  found = pathlib.Path(hmpo_jax.__file__)
  if not found.is_relative_to(os.getcwd()):
    sys.exit(f'Python imports {found} there')
  os.chdir(folder)
  pathlib.Path(_FOUND).write_text(json.dumps(str(found)), encoding='utf-8')
  programs = found.parent.parent / 'experiments'
  for name in cases:
    pathlib.Path(name).mkdir()
    with (
      open(f'{name}/{_LOG}', 'w', encoding='utf-8') as log,
      contextlib.redirect_stdout(log),
      contextlib.redirect_stderr(log),
    ):
      codes = list(_run_case(programs, name, log))
    if codes[-1] or (len(codes) > 1) != (name == _RESUMED):
      text = pathlib.Path(name, _LOG).read_text(encoding='utf-8')
      last = (text.strip() or 'nothing was said').splitlines()[-1]
      sys.exit(f'{name} ended with {codes}: {last}')
    for file in pathlib.Path(name).rglob(_METRICS):
      _digest_arrays(file.parent)


def _run_case(programs, name, log) -> Iterator[int]:
  """Exit codes of the command that makes a case, until it ends well."""
  (overrides,) = (job[name] for job in _jobs() if name in job)
  arguments = [f'--config.{text}' for text in overrides]
  if name == _PLAN:
    command = [programs / 'compare.py', '--config=plan.py', '--jobs=1']
    yield subprocess.run(
      [sys.executable, *command, f'--workdir={name}', *arguments],
      stdout=log,
      stderr=log,
      check=False,
    ).returncode
    return
  run = _main_of(programs / 'main.py')
  argv = ['main.py', '--config=base.json', f'--workdir={name}', *arguments]
  for _ in range(2):
    code = _exit_code(run, argv)
    yield code
    if not code:
      return


def _exit_code(run, argv):
  try:
    run(argv)
  except SystemExit as end:
    return end.code
  except Exception:  # noqa: BLE001
    traceback.print_exc()
    return 1
  return 0


def _main_of(file):
  """What a program does of its command line, its flags defined once."""
  name = file.stem
  if name not in sys.modules:
    spec = util.spec_from_file_location(name, file)
    assert spec and spec.loader, file
    sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
  module = sys.modules[name]
  return lambda argv: module.main(module.parse_flags(argv))


def _digest_arrays(run):
  """Writes the digest of each array of the last checkpoint of a run."""
  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415
  import orbax.checkpoint as ocp  # noqa: PLC0415

  steps = [p for p in (run / 'checkpoints').iterdir() if p.name.isdigit()]
  newest = max(steps, key=lambda path: int(path.name))
  with ocp.StandardCheckpointer() as saver:
    arrays = saver.restore((newest / 'state').absolute())
  digests = {
    f'step {newest.name}{jax.tree_util.keystr(path)}': hashlib.sha256(
      f'{x.dtype}{x.shape}'.encode() + np.asarray(x).tobytes()
    ).hexdigest()
    for path, x in jax.tree_util.tree_leaves_with_path(arrays)
  }
  (run / _ARRAYS).write_text(json.dumps(digests), encoding='utf-8')


def report(
  there: pathlib.Path, here: pathlib.Path, excepted: Sequence[str]
) -> bool:
  """Says what differs between what two trees made; returns whether any does."""
  names = sorted(
    {
      str(file.parent.relative_to(folder))
      for folder in (there, here)
      for file in folder.rglob(_METRICS)
    }
  )
  everywhere: dict[str, int] = {}
  for name in names:
    found = [
      difference
      for file in (_METRICS, _TABLE, _ARRAYS)
      for difference in differences(
        there / name / file, here / name / file, excepted
      )
    ]
    if found:
      print(f'{name}: {found[0][1]}')
    for key in {key for key, _ in found}:
      everywhere[key] = everywhere.get(key, 0) + 1
  for key, count in sorted(everywhere.items()):
    print(f'  {key} differs in {count} of {len(names)} runs')
  if not everywhere:
    print(f'same bits: {len(names)} runs')
  return bool(everywhere)


def differences(
  there: pathlib.Path, here: pathlib.Path, excepted: Sequence[str]
) -> Iterator[tuple[str, str]]:
  """Keys that differ between two files, each with where it first does.

  Args:
    there: a file of a run of the other commit.
    here: the same file of this tree's run.
    excepted: patterns of keys that don't count.
  """
  theirs, ours = (_records(file, excepted) for file in (there, here))
  seen = set()
  if len(theirs) != len(ours):
    yield (
      here.name,
      (f'{here.name} has {len(theirs)} records there and {len(ours)} here'),
    )
  for number, (old, new) in enumerate(zip(theirs, ours), 1):
    for key in old | new:
      values = [side.get(key, 'absent') for side in (old, new)]
      if values[0] != values[1] and key not in seen:
        seen.add(key)
        yield (
          key,
          (
            f'{here.name}, record {number}, {key}: '
            f'{values[0]!s:.99} there, {values[1]!s:.99} here'
          ),
        )
    if old == new and list(old) != list(new) and 'order' not in seen:
      seen.add('order')
      yield 'order', f'{here.name}, record {number}: keys in another order'


def _records(file, excepted):
  """Dicts of texts, as the file has them, without what is excepted."""
  with open(file, encoding='utf-8', newline='') as lines:
    if file.suffix == '.csv':
      rows = list(csv.DictReader(lines))
    else:
      rows = [
        json.loads(line, parse_float=str, parse_int=str) for line in lines
      ]
  is_compared = lambda key: (
    not any(fnmatch.fnmatchcase(key, pattern) for pattern in excepted)
  )
  return [{k: v for k, v in row.items() if is_compared(k)} for row in rows]


def _git(*arguments):
  result = subprocess.run(
    ['git', '-C', str(_ROOT), *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  if result.returncode:
    raise Failed(f'git {" ".join(arguments)}: {result.stderr.strip()}')
  return result.stdout.strip()


if __name__ == '__main__':
  app.run(main)
