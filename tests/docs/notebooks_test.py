"""The notebooks: what is committed, how they start, and that they run."""

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import nbformat

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = _ROOT / 'notebooks'
_NAMES = ('01_power_means', '02_quickstart', '03_results')
# What stands outside the repository and names a machine.
_MACHINE = re.compile(
  r'/(?:home|tmp|root|work|Users|content|var|opt|usr)/'
  r'|[A-Z]:\\|0x[0-9a-f]{8}'
)
_TINY = {
  'num_steps': '2',
  'checkpoint.every': '2',
  'task.num_digits': '5',
  'model.num_layers': '1',
  'model.embed_dim': '16',
  'model.mlp_dim': '16',
  'rollout.num_prompts': '4',
  'warm_start.num_steps': '2',
  'eval.num_prompts': '8',
  # Muon takes seconds to compile; a few steps must move the ratios.
  'optim.name': 'adamw',
  'optim.qk_clip': 'off',
  'optim.learning_rate': '0.01',
}
# Stands in for TensorBoard, whose server would outlive the test.
_TENSORBOARD = """
def load_ipython_extension(shell):
  shell.register_magic_function(
      lambda line: print('TensorBoard shows', line), magic_name='tensorboard')
"""


def _module(name):
  spec = importlib.util.spec_from_file_location(
    f'notebooks_{name}', _FOLDER / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


execute, start = _module('execute'), _module('start')


def _read(name):
  return nbformat.read(_FOLDER / f'{name}.ipynb', as_version=4)


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _texts(cells):
  """Texts of what cells have put out, errors too."""
  for cell in cells:
    for output in cell.outputs:
      if output.output_type == 'stream':
        yield output.text
      elif output.output_type == 'error':
        yield '\n'.join([output.evalue, *output.traceback])
      else:
        yield from (
          text
          for kind, text in sorted(output.data.items())
          if kind.startswith('text/')
        )


def _images(notebook):
  outputs = (output for cell in _code(notebook) for output in cell.outputs)
  return [o for o in outputs if 'image/png' in o.get('data', {})]


def _parameters(notebook):
  return [
    c for c in _code(notebook) if 'parameters' in c.metadata.get('tags', ())
  ]


def _fake_tensorboard(folder):
  package = folder / 'tensorboard'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text(_TENSORBOARD, encoding='utf-8')
  facts = folder / 'tensorboard-99.0.dist-info'
  facts.mkdir()
  (facts / 'METADATA').write_text(
    'Metadata-Version: 2.1\nName: tensorboard\nVersion: 99.0\n',
    encoding='utf-8',
  )


class _Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name).resolve()


class CommittedTest(parameterized.TestCase):
  @parameterized.parameters(*_NAMES)
  def test_opens_in_colab_on_a_tpu(self, name):
    notebook = _read(name)
    nbformat.validate(notebook)
    facts = notebook.metadata
    self.assertEqual(facts.accelerator, 'TPU')
    self.assertEqual(facts.colab.gpuType, 'V5E1')
    self.assertEqual(facts.kernelspec.name, 'python3')
    self.assertEqual(facts.language_info, {'name': 'python'})
    self.assertLess((_FOLDER / f'{name}.ipynb').stat().st_size, 1_000_000)
    self.assertLen(_parameters(notebook), 1)

  @parameterized.parameters(*_NAMES)
  def test_says_at_its_top_what_it_needs_and_takes(self, name):
    top = _read(name).cells[0]
    self.assertEqual(top.cell_type, 'markdown')
    self.assertIn('**Needs**', top.source)
    self.assertRegex(
      top.source,
      r'\*\*Takes\*\* [^*]*\b(seconds|minutes)\b[^*]* on two CPU cores',
    )

  @parameterized.parameters(*_NAMES)
  def test_outputs_are_those_of_its_sources_run_in_order(self, name):
    notebook = _read(name)
    code = _code(notebook)
    self.assertEqual(notebook.metadata.hmpo_jax.ran, execute.digest(notebook))
    self.assertEqual(
      [cell.execution_count for cell in code], list(range(1, len(code) + 1))
    )
    kinds = {output.output_type for cell in code for output in cell.outputs}
    self.assertNotIn('error', kinds)
    self.assertRegex(code[0].outputs[-1].text, r'^Python .*, jax 0\.7\.2')
    for cell in code:
      if 'show(' in cell.source or 'print(' in cell.source:
        if 'def ' not in cell.source:
          self.assertNotEmpty(cell.outputs, cell.source)

  @parameterized.parameters(*_NAMES)
  def test_names_no_machine(self, name):
    notebook = _read(name)
    texts = [cell.source for cell in notebook.cells] + list(
      _texts(_code(notebook))
    )
    for text in texts:
      self.assertNotRegex(text, _MACHINE)

  @parameterized.parameters(*_NAMES)
  def test_images_have_alternative_text(self, name):
    images = _images(_read(name))
    self.assertBetween(len(images), 2, 5)
    for image in images:
      self.assertNotEmpty(image.metadata['image/png']['alt'])

  def test_all_start_alike(self):
    cells = {
      re.sub(r"(?m)^start\['prepare'\].*$", '', _code(_read(name))[0].source)
      for name in _NAMES
    }
    self.assertLen(cells, 1)
    self.assertLess(cells.pop().count('\n'), 40)

  @parameterized.parameters(*_NAMES)
  def test_prose_states_no_result(self, name):
    # Other versions of JAX give other ones: cells of code tell them.
    for cell in _read(name).cells[1:]:
      if cell.cell_type == 'markdown':
        prose = re.sub(r'\$[^$]+\$|`[^`]+`|\]\([^)]+\)', '', cell.source)
        self.assertNotRegex(prose, r'\d%|\d\.\d')


class FirstCellTest(_Folder):
  """Its code, run where no notebook is."""

  def setUp(self):
    super().setUp()
    self.source = _code(_read(_NAMES[1]))[0].source
    _fake_tensorboard(self.folder / 'site')
    self.cwd = self.folder / 'work'
    self.cwd.mkdir()

  def _run(self, cwd=None, repository=''):
    """Text of the cell, with a traceback as IPython would show it."""
    source = self.source.replace(
      "REPOSITORY = ''", f'REPOSITORY = {repository!r}'
    )
    program = (
      f'try:\n  exec({source!r}, globals())\nexcept Exception as error:\n'
      '  print(*error._render_traceback_(), sep="\\n")\n'
      'else:\n  import hmpo_jax\n  print(hmpo_jax.__file__)\n'
    )
    result = subprocess.run(
      [sys.executable, '-c', program],
      cwd=cwd or self.cwd,
      env=os.environ | {'PYTHONPATH': str(self.folder / 'site')},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    return result.stdout.splitlines()

  def _tree(self, name='hmpo_jax-main'):
    """A folder with what the package and the first cell need."""
    tree = self.folder / 'made' / name
    ignore = shutil.ignore_patterns('__pycache__', '*.ipynb')
    for part in ('hmpo_jax', 'notebooks'):
      shutil.copytree(_ROOT / part, tree / part, ignore=ignore)
    shutil.copy(_ROOT / 'setup.cfg', tree)
    return tree

  def _assert_package_below(self, lines, folder):
    self.assertLen(lines, 2)
    self.assertStartsWith(lines[0], 'Python ')
    self.assertEqual(
      pathlib.Path(lines[1]), folder / 'hmpo_jax' / '__init__.py'
    )

  @parameterized.parameters('.', 'notebooks')
  def test_uses_the_checkout_it_is_in(self, below):
    # Even with an archive beside it.
    tree = self._tree()
    (tree / below / 'hmpo_jax.zip').write_bytes(b'')
    self._assert_package_below(self._run(tree / below), tree)

  @parameterized.parameters(('zip', 'hmpo_jax-main'), ('gztar', '.'))
  def test_unpacks_an_uploaded_archive(self, kind, top):
    tree = self._tree()
    base, below = (tree.parent, tree.name) if top != '.' else (tree, '.')
    shutil.make_archive(str(self.cwd / 'hmpo_jax-main'), kind, base, below)
    unpacked = self.cwd / 'hmpo_jax_source' / ('' if top == '.' else top)
    self._assert_package_below(self._run(), unpacked)

  def test_clones_the_address(self):
    tree = self._tree()
    git = ['git', '-C', str(tree), '-c', 'user.name=n', '-c', 'user.email=e']
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'All']):
      subprocess.run([*git, *command], check=True, capture_output=True)
    lines = self._run(repository=tree.as_uri())
    self._assert_package_below(lines, self.cwd / 'hmpo_jax_source')

  def test_says_in_one_line_what_to_do(self):
    (line,) = self._run()
    self.assertStartsWith(line, 'error: hmpo_jax is not here: upload')

  def test_says_in_one_line_that_an_archive_is_cut(self):
    for name in ('hmpo_jax.zip', 'hmpo_jax.tar.gz'):
      (self.cwd / name).write_bytes(b'PK')
      (line,) = self._run()
      self.assertStartsWith(line, f'error: no hmpo_jax from {name}: ')
      self.assertFalse((self.cwd / 'hmpo_jax_source').exists())
      (self.cwd / name).unlink()

  def test_says_in_one_line_that_there_is_no_such_address(self):
    address = (self.folder / 'nowhere').as_uri()
    (line,) = self._run(repository=address)
    self.assertStartsWith(line, f'error: no hmpo_jax from {address}: ')


class StartTest(_Folder):
  def test_requirements_are_those_of_the_package_and_its_extras(self):
    lines = start.requirements('plot', 'tb')
    names = [re.match(r'[\w-]+', line)[0] for line in lines]
    self.assertContainsSubset(
      ('jax', 'ml_collections', 'tensorboardX', 'pandas', 'tensorboard'), names
    )
    self.assertNotIn('pytest', names)

  def test_a_requirement_is_met_by_a_version_in_its_range(self):
    self.assertTrue(start.is_met('numpy>=1'))
    self.assertFalse(start.is_met('numpy>=1000'))
    self.assertFalse(start.is_met('hmpo-jax-that-nobody-made>=1'))

  def test_pip_adds_what_is_missing_and_keeps_the_rest(self):
    seen = {}

    def pip(command, **_):
      constraints = command[command.index('--constraint') + 1]
      seen['kept'] = pathlib.Path(constraints).read_text(encoding='utf-8')
      seen['added'] = command[command.index(constraints) + 1 :]
      return subprocess.CompletedProcess(command, 0, '', '')

    with mock.patch.object(start.subprocess, 'run', pip):
      start.install(['ml_collections>=1.0'], ['jax>=0.7.2', 'numpy>=2.0'])
    self.assertEqual(seen['added'], ['ml_collections>=1.0'])
    self.assertRegex(
      seen['kept'], r'^jax==[\d.]+\nnumpy==[\d.]+\njaxlib==[\d.]+$'
    )

  def test_a_failure_of_pip_is_one_line(self):
    failed = subprocess.CompletedProcess([], 1, '', 'text\nERROR: no network\n')
    with mock.patch.object(start.subprocess, 'run', return_value=failed):
      with self.assertRaises(start.SetupError) as caught:
        start.install(['a>=1', 'b'], [])
    (shown,) = caught.exception._render_traceback_()
    self.assertEqual(
      shown, 'error: pip could not install a>=1, b: ERROR: no network'
    )


class RunTest(_Folder):
  """Every notebook, with a tiny configuration in its cell of parameters."""

  def _run(self, name, **parameters):
    notebook = _read(name)
    (cell,) = _parameters(notebook)
    names = [node.targets[0].id for node in ast.parse(cell.source).body]
    self.assertContainsSubset(parameters, names)
    kept = cell.source if set(parameters) < set(names) else ''
    cell.source = '\n'.join(
      [kept, *(f'{key} = {value!r}' for key, value in parameters.items())]
    )
    _fake_tensorboard(self.folder / 'site')
    site = {'PYTHONPATH': str(self.folder / 'site')}
    with mock.patch.dict(os.environ, site):
      execute.run(notebook, _FOLDER)
    # Not assertLen, which would print the images.
    self.assertEqual(len(_images(notebook)), len(_images(_read(name))))
    return notebook, '\n'.join(_texts(_code(notebook)))

  def test_power_means(self):
    _, text = self._run(
      '01_power_means',
      OVERRIDES=_TINY | {'mechanism.every': '0'},
      WORKDIR=str(self.folder / 'run'),
      NUM_ROLLOUTS=1,
    )
    self.assertIn('update 1: largest |x| = 0.000 nats', text)
    self.assertNotIn('update 8: largest |x| = 0.000 nats', text)
    self.assertIn('update 1: cosine of p = -1 and 0 1.0000', text)

  def test_quickstart(self):
    workdir = self.folder / 'runs'
    _, text = self._run(
      '02_quickstart',
      OVERRIDES=_TINY,
      WORKDIR=str(workdir),
      SEEDS=(0, 1),
      SHOW_TENSORBOARD=True,
    )
    self.assertIn(f'TensorBoard shows --logdir {workdir}', text)
    for run in ('hmpo-seed-0', 'hmpo-seed-1', 'gspo-seed-0', 'gspo-seed-1'):
      self.assertTrue((workdir / run / 'summary.json').exists(), run)
    self.assertIn('here, seed 1: HMPO - GSPO = ', text)

  def test_results_are_those_that_are_committed(self):
    notebook, _ = self._run('03_results')
    number = re.compile(r'-?\d+(?:\.\d+)?')
    for new, old in zip(_code(notebook)[1:], _code(_read('03_results'))[1:]):
      self.assertEqual(
        number.findall(' '.join(_texts([new]))),
        number.findall(' '.join(_texts([old]))),
      )


if __name__ == '__main__':
  absltest.main()
