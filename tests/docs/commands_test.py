"""Every command of the documentation is run, or why it can't be is said."""

import configparser
import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax.config import files as config_files
from tests import agm_client
from tests import doc_pages
from tests.docs import extending_test

_ROOT = doc_pages.ROOT
_BASE = 'python experiments/main.py --config=configs/hmpo.py'
_PLAN = 'python experiments/compare.py --config=configs/plan_quick.py'
_RECORDED = 'python experiments/compare.py --config=configs/plan_telemetry.py'
_BUNDLE = 'results/agm_telemetry'


class Run(NamedTuple):
  """Commands that are run; arguments are added to make them short."""

  pattern: str  # of the whole command
  extra: str = ''
  replaced: tuple[tuple[str, str], ...] = ()  # texts, before anything else
  needs: str = ''  # a command whose files it reads


class Look(NamedTuple):
  """Commands that are not run; their files and flags are looked up."""

  pattern: str
  reason: str


_SMALL = (
  '--config.model.num_layers=1 --config.model.embed_dim=16 '
  '--config.model.mlp_dim=16 --config.task.num_digits=4 '
  '--config.rollout.num_prompts=4 --config.warm_start.num_steps=2 '
  '--config.eval.num_prompts=8 --config.optim.name=adamw '
  '--config.mechanism.every=0'
)
_RUN = f'{_SMALL} --config.num_steps=12 --config.checkpoint.every=5'
_TWO = f'{_SMALL} --config.num_steps=2'

# The first that matches a command says what is done with it.
_RULES: tuple[Run | Look, ...] = (
  Run(re.escape(_BASE), _RUN),
  Run(
    r'python experiments/main\.py --config=configs/hmpo\.py '
    r'--config\.control\.function=my_controller\.py:\w+',
    f'{_TWO} --workdir=runs/controlled',
  ),
  Run(
    r'python experiments/main\.py --config=configs/hmpo\.py '
    r'--config\.control\.function=experiments/agm_adapter\.py:Adapter',
    f'{_TWO} --workdir=runs/adapted',
  ),
  Run(
    r'python experiments/main\.py --config=configs/[\w.:]+'
    r'( --config\.[\w.]+=\S+)*',
    f'{_TWO} --workdir=runs/other',
  ),
  Run(
    r'python experiments/main\.py --config=\S+/config\.json',
    replaced=(('=RUN', '=runs/hmpo'),),
    needs=_BASE,
  ),
  Run(r'python experiments/verify\.py --workdir=runs/hmpo', needs=_BASE),
  Run(
    r'python experiments/replay\.py --workdir=runs/hmpo --step=\d+', needs=_BASE
  ),
  Run(
    r'python experiments/replay_controller\.py --workdir=(runs/hmpo|RUN) '
    r'--controller=\S+',
    replaced=(('=RUN', '=runs/hmpo'),),
    needs=_BASE,
  ),
  # The bundle is read where it is; it must not be written to.
  Run(
    r'python experiments/replay_controller\.py '
    rf'--workdir={_BUNDLE}/\S+ --controller=hmpo_jax\S+',
    replaced=((_BUNDLE, str(_ROOT / _BUNDLE)),),
  ),
  Run(re.escape(_RECORDED), f'{_TWO} --jobs=1'),
  Run(
    r'python experiments/export_telemetry\.py '
    r'--workdir=runs/plan_telemetry',
    '--out=runs/bundle',
    needs=_RECORDED,
  ),
  Run(r'python experiments/token_weights\.py --workdir=runs/hmpo', needs=_BASE),
  Run(re.escape(_PLAN), f'{_TWO} --only=gspo,hmpo --seeds=2 --jobs=1'),
  Look(
    r'python experiments/report\.py '
    r'--answers=README\.md,results/README\.md(,docs/results\.md)?',
    'answers_test.py fills pages',
  ),
  Run(r'python experiments/report\.py --workdir=runs/plan_quick', needs=_PLAN),
  Look(
    r'python experiments/drawdowns\.py --workdir=runs/plan',
    'needs drawdowns; prediction_test.py has some',
  ),
  Look(
    r'python experiments/compare\.py --config=configs/plan_ladder\.py',
    'takes an hour',
  ),
  Look(
    r'python experiments/report\.py --workdir=runs/plan_ladder',
    'needs that plan',
  ),
  Look(
    r'python experiments/compare\.py --config=configs/plan\w*\.py '
    r'--dry-run',
    'compare_test.py makes one of a small plan',
  ),
  Run(
    r'python experiments/oracle\.py --workdir=runs/oracle',
    '--policies=2 --samples=16 --length=2 --sigma=0.1 --p=0 '
    '--variant_length=2 --variant_sigma=0.1 --loss=reinforce',
  ),
  Run(
    r'python experiments/learning_table\.py --workdir=runs/learning',
    # One of its arms sets a key that AdamW has no use for.
    f'{_TWO} --seeds=2 --config.optim.name=muon_clip',
  ),
  Look(
    r'python experiments/stress_table\.py --workdir=runs/stress_table',
    'stress_table_test.py runs it with a small policy',
  ),
  Look(
    r'python experiments/bench --suite=kernels',
    'it compiles the train step of the default run, beside its kernels',
  ),
  Run(
    r'python experiments/bench --suite=logprobs',
    '--rounds=2 --shapes=2x3x5 --variants=naive',
  ),
  Run(
    r'python experiments/bench --suite=attention',
    '--rounds=2 --shapes=1x2x1x1x2 --variants=plain',
  ),
  Look(
    r'python experiments/bench --suite=(step|rollout|runs).*',
    'their workloads are fixed, and take minutes',
  ),
  Look(
    r'python experiments/bench .*--\w+_python=.*',
    'times other projects, in environments of their own',
  ),
  Look(r'python experiments/parity\.py', 'compares with other projects'),
  Run(r"python -c 'import jax; print\(jax\.devices\(\)\)'"),
  Look(
    r'python experiments/same_bits\.py --against=COMMIT',
    'same_bits_test.py compares two trees',
  ),
  Look(r'python -m pytest.*', 'is what runs this, or takes minutes'),
  Look(r'pip install .*', 'reads from the network'),
  Look(
    r'python3[\d.]* -m venv \S+|source \S+/bin/activate',
    'makes an environment, for an installation',
  ),
  Look(r'(ruff (check|format)|mypy)\b.*', 'is run over everything by .ci/run'),
  Look(r'pre-commit install', 'changes the checkout'),
  Look(r'mkdocs (build.*|serve)', 'is built by .ci/run; a server never ends'),
  Look(r'tensorboard --logdir=runs', 'is a server, which never ends'),
  Look(r'python docs/(api|metric)_tables\.py', 'writes the pages'),
  Look(r'python docs/keys_page\.py', 'writes the page'),
  Look(r'jupyter .*', 'is a server, which never ends'),
  Look(r'git clone .*', 'reads from the network'),
)


def _found():
  """Commands of all pages, but those that only fit a changed copy."""
  texts = [
    page.read_text(encoding='utf-8')
    for page in doc_pages.pages()
    if page.name != 'CHANGELOG.md'
  ]
  return list(
    dict.fromkeys(c for text in texts for c in doc_pages.commands(text))
  )


def rule_of(command: str) -> Run | Look | None:
  """What is done with a command; None if nothing is known about it."""
  matching = (r for r in _RULES if re.fullmatch(r.pattern, command))
  return next(matching, None)


def _named(kind):
  """Commands of one kind, in the order of their rules."""
  chosen = [c for c in _found() if isinstance(rule_of(c), kind)]
  chosen.sort(key=lambda command: _RULES.index(rule_of(command)))
  name = lambda command: re.sub(r'\W+', '_', command)
  return tuple((name(command), command) for command in chosen)


def _scratch():
  """A folder like a checkout, which results and runs may be written to."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name)
  for name in ('configs', 'experiments', 'setup.cfg'):
    (path / name).symlink_to(_ROOT / name)
  controllers = [
    body
    for page in doc_pages.pages()
    for language, body in doc_pages.blocks(page.read_text(encoding='utf-8'))
    if language == 'python' and 'class Controller' in body
  ]
  agm_client.install(path)
  if controllers:
    (path / 'my_controller.py').write_text(controllers[0], encoding='utf-8')
  return folder


class RunTest(parameterized.TestCase):
  """Commands that end by themselves, in a folder that all share."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls._folder = _scratch()
    cls.addClassCleanup(cls._folder.cleanup)
    cls._results = {}

  def _run(self, command):
    """Runs a command, or what it was already; first what it needs."""
    rule = rule_of(command)
    if rule.needs and rule.needs != command:
      self._run(rule.needs)
    for old, new in rule.replaced:
      command = command.replace(old, new)
    if command not in self._results:
      arguments = shlex.split(f'{command} {rule.extra}')
      if arguments[0] == 'python':
        arguments[0] = sys.executable
      self._results[command] = subprocess.run(
        arguments,
        cwd=self._folder.name,
        env=os.environ
        | {'PYTHONPATH': f'{_ROOT}{os.pathsep}{self._folder.name}'},
        capture_output=True,
        text=True,
        check=False,
      )
    result = self._results[command]
    self.assertEqual(
      result.returncode, 0, f'{command}\n{result.stdout}{result.stderr}'
    )

  @parameterized.named_parameters(*_named(Run))
  def test_ends_well(self, command):
    self._run(command)


@functools.cache
def _help(program):
  """What a program of experiments/ says of its flags."""
  return subprocess.run(
    [sys.executable, _ROOT / program, '--help'],
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  ).stdout


def missing(command: str) -> list[str]:
  """Files, flags and extras of a command that there are not."""
  words = shlex.split(command)
  # What is made first: environments, and runs.
  named = [
    word
    for word in words[1:]
    if re.fullmatch(
      r'[\w./-]+\.(py|md|toml|cfg)|tests|configs|experiments|'
      'hmpo_jax',
      word,
    )
  ]
  absent = [name for name in named if not (_ROOT / name).exists()]
  if words[:1] == ['python'] and words[1].startswith('experiments/'):
    known = _help(words[1])
    names = [word.split('=')[0].removeprefix('--') for word in words[2:]]
    absent += [
      f'--{name}'
      for name in names
      if not re.search(
        rf'^  (-\w,)?--(\[no\])?{name.replace("-", "_")}:', known, re.M
      )
    ]
  setup = configparser.ConfigParser()
  setup.read(_ROOT / 'setup.cfg')
  extras = re.search(r'\.\[([\w,]+)\]', command)
  absent += [
    f'extra {extra}'
    for extra in (extras[1].split(',') if extras else ())
    if extra not in setup['options.extras_require']
  ]
  if words[0] == 'mkdocs' and not (_ROOT / 'mkdocs.yml').exists():
    absent.append('mkdocs.yml')
  if '-m long' in command:
    absent += [
      f'a long test in {name}'
      for name in named
      if 'mark.long' not in (_ROOT / name).read_text(encoding='utf-8')
    ]
  return absent


class LookTest(parameterized.TestCase):
  @parameterized.named_parameters(*_named(Look))
  def test_files_and_flags_exist(self, command):
    self.assertEqual(missing(command), [])

  @parameterized.parameters(
    ('python experiments/none.py', 'experiments/none.py'),
    ('python experiments/bench --suite=all --peer', '--peer'),
    ("pip install -e '.[test,none]'", 'extra none'),
    ('python -m pytest tests/none_test.py', 'tests/none_test.py'),
    (
      'python -m pytest -m long tests/kernels/means_test.py',
      'a long test in tests/kernels/means_test.py',
    ),
  )
  def test_what_is_missing_is_named(self, command, name):
    self.assertIn(name, missing(command))


class EveryCommandTest(absltest.TestCase):
  def test_has_a_rule(self):
    unknown = [command for command in _found() if rule_of(command) is None]
    self.assertEqual(
      unknown,
      [],
      'who adds a command to the documentation adds a rule to '
      '_RULES in tests/docs/commands_test.py',
    )

  def test_some_are_run_and_each_other_has_a_reason(self):
    self.assertIn(_BASE, _found())
    for rule in _RULES:
      self.assertTrue(isinstance(rule, Run) or rule.reason)

  def test_an_unknown_command_has_none(self):
    for command in ('python experiments/none.py', f'{_BASE} --unknown'):
      self.assertIsNone(rule_of(command))

  def test_overrides_name_keys_and_hold_values(self):
    for page in doc_pages.pages():
      text = page.read_text(encoding='utf-8')
      for key, value in re.findall(
        r'--config\.([a-z_]+(?:\.[a-z_0-9]+)*)='
        r'([^\s`\'"|,;)]+)',
        text,
      ):
        is_new = f'--config.{key}={value}' in extending_test.CHOSEN
        if not is_new and not re.match('[A-Z.]+$', value):
          config_files.typed(key, value)


class PagesTest(absltest.TestCase):
  def test_commands_of_blocks_and_spans(self):
    text = """
```
pip install -e . && python a.py --x=1 \\
    --y=2
some output
```

1.  ```sh
    $ anything at all
    # no command
    ```

```python
python = 1
```

Run `python b.py
--z` or `python`, ``git apply `x` ``.
"""
    self.assertEqual(
      doc_pages.commands(text),
      [
        'pip install -e .',
        'python a.py --x=1 --y=2',
        'anything at all',
        'python b.py --z',
        'git apply `x`',
      ],
    )


if __name__ == '__main__':
  absltest.main()
